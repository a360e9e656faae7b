/** The version every message carries. Messages are added, not changed; a change that old peers cannot read raises it. */
export const PROTOCOL_VERSION = 1
/**
 * Versions that this build reads and writes, the oldest first: the one of the release before is among them. A holder says
 * hello in the oldest and names all it speaks; the welcome names the newest that both speak, and from then on it is
 * used. Every request is answered in its own version, so replicas of two releases may stand side by side.
 */
export const SPOKEN_VERSIONS: readonly number[] = [1]

/** The newest version that both speak; undefined where there is none. */
export function commonVersion(ours: readonly number[], theirs: readonly number[]): number | undefined {
  return ours.filter((version) => theirs.includes(version)).sort((a, b) => b - a)[0]
}

/** No message on any link is larger than this, after encoding. Larger things go by digest through files. */
export const MAX_MESSAGE_BYTES = 48 * 1024
