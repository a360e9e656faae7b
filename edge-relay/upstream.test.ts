/** What the relay says to the centre at its largest. */
import { randomBytes } from 'node:crypto'
import { expect, it } from 'vitest'
import { check, encode, pack } from '../shared/protocol/codec.ts'
import { firstFitting } from '../shared/protocol/fitting.ts'
import { type LeasePart, type Message, type OfferEntry, pullSchema } from '../shared/protocol/messages.ts'
import { MAX_MESSAGE_BYTES, PROTOCOL_VERSION } from '../shared/protocol/version.ts'
import { MOST_TEMPLATES, OFFER_BYTES, RETURNED_BYTES } from './upstream.ts'

const LARGEST = Number.MAX_SAFE_INTEGER
const words = (characters: number) => randomBytes(characters).toString('hex').slice(0, characters)
const times = <T>(count: number, make: () => T) => Array.from({ length: count }, make)
it('upstream - a pull with all its lists full is taken, even where deflating gains nothing', () => {
  const entry = (): OfferEntry => ({
    shape: {
      ...{ cores: LARGEST, memoryBytes: LARGEST, scratchBytes: LARGEST, gpus: LARGEST, gpuMemoryBytes: LARGEST },
      ...{ arch: words(200), runtimes: ['host', 'container'], network: 'outgoing' },
    },
    count: LARGEST,
    timeLeftMs: LARGEST,
    aheadMs: LARGEST,
    node: words(200),
  })
  const part = (): LeasePart => ({
    ...{ bundle: words(200), campaign: words(200), step: words(200), fences: [LARGEST] },
    tasks: times(200, () => '9').join(','),
  })
  const pull: Message<'pull'> = {
    session: words(200),
    sequence: LARGEST,
    processed: LARGEST,
    seen: { epoch: words(200), sequence: LARGEST, proof: words(100) },
    offer: firstFitting(times(64, entry), OFFER_BYTES),
    finished: [],
    returned: firstFitting(times(200, part), RETURNED_BYTES),
    waitMs: 60_000,
    knows: times(MOST_TEMPLATES, () => words(16)),
  }
  check(pullSchema, pull, 'pull')
  // What would have gone into the lists yet, had there been an entry as light as that.
  const left = OFFER_BYTES + RETURNED_BYTES - pack(pull.offer).length - pack(pull.returned).length
  expect(pack([PROTOCOL_VERSION, 'pull', pull]).length + left).toBeLessThan(MAX_MESSAGE_BYTES)
  encode('pull', pull)
})
