/**
 * Room on a disk, asked for before a file is written there: a disk that one transfer fills stops all that uses it. Who
 * watches the disk implements it.
 */
export interface Room {
  /** @param bytes that are to come; null where nobody says @throws IndraftError store.full */
  claim(bytes: number | null): Promise<Claim>
}

export interface Claim {
  /** Before so many bytes are written. @throws IndraftError store.full */
  take(bytes: number): void
  /** What was not taken is free again. */
  end(): void
}

/** The same content, which ends where there is no room for more. */
export async function* within(content: AsyncIterable<Uint8Array>, claim: Claim): AsyncGenerator<Uint8Array> {
  for await (const chunk of content) {
    claim.take(chunk.length)
    yield chunk
  }
}
