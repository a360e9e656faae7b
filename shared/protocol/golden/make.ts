/**
 * Writes the golden samples of this version: `node shared/protocol/golden/make.ts`. Each is a message as it goes over
 * the wire (.bin) and what it decodes to (.json; bytes as {"base64": ...}). Every later build has to read them.
 *
 * IMPORTANT: a sample that exists is never written again: it stands for what peers in the field send. A new message,
 * or a new optional field worth keeping, gets a file of its own. golden.test.ts holds every build to all of them.
 */
import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { SAMPLES } from '../../../test/sample-messages.ts'
import { encode } from '../codec.ts'
import type { MessageType } from '../messages.ts'
import { PROTOCOL_VERSION } from '../version.ts'
import { readable } from './readable.ts'

const folder = join(import.meta.dirname, `v${PROTOCOL_VERSION}`)
mkdirSync(folder, { recursive: true })
const say = (line: string) => process.stdout.write(`${line}\n`)

for (const [type, samples] of Object.entries(SAMPLES)) {
  for (const [size, body] of Object.entries(samples)) {
    const path = join(folder, size === 'full' ? type : `${type}-${size}`)
    if (existsSync(`${path}.bin`)) {
      say(`kept    ${path}.bin (released samples are never rewritten)`)
      continue
    }
    writeFileSync(`${path}.bin`, encode(type as MessageType, body as never))
    writeFileSync(`${path}.json`, `${JSON.stringify({ type, body: readable(body) }, null, 1)}\n`)
    say(`written ${path}.bin`)
  }
}
