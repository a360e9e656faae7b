/**
 * What a holder may do at the file server of its dispatcher: a capability per lease, made by the dispatcher with a key
 * that only it has, shown by the holder in the header `Indraft-Capability`, never given to payloads. A relay keeps the
 * one that central gave it and makes another for its pilots.
 *
 * It opens writing and reading under exactly the attempts it names, and reading of what those attempts may need:
 * other attempts of the same campaign, blobs, and files from outside.
 */
import { createHmac, timingSafeEqual } from 'node:crypto'
import { z } from 'zod'
import { IndraftError } from '../errors.ts'
import { containsIndex, formatRanges, parseRanges, type Span } from '../ranges.ts'

export const CAPABILITY_HEADER = 'indraft-capability'
/** Grants carry at most 1000 characters of it. */
const LONGEST_TASKS = 300

const capabilitySchema = z.object({
  campaign: z.string(),
  step: z.string(),
  fences: z.array(z.number().int()).min(1),
  /** Where it was granted to: shown with the token of another site it opens nothing. A relay serves one site and says none. */
  site: z.string().optional(),
  /** Indices as in shared/ranges.ts. */
  tasks: z.string(),
  /** Wall clock of the dispatcher, which both makes and checks it. */
  expiresAtMs: z.number(),
})
export type Capability = z.infer<typeof capabilitySchema>

/** An attempt as a file path names it. */
export interface AttemptName {
  campaign: string
  step: string
  index: number
  fences: readonly number[]
}

export function makeCapability(key: Uint8Array, capability: Capability): string {
  const body = Buffer.from(JSON.stringify({ ...capability, tasks: shortRanges(capability.tasks) })).toString(
    'base64url',
  )
  return `${body}.${mac(key, body).toString('base64url')}`
}

/** A long list of indices becomes the span it covers: attempts outside the lease do not exist under these fences. */
function shortRanges(tasks: string): string {
  if (tasks.length <= LONGEST_TASKS) return tasks
  const spans = parseRanges(tasks)
  const cover: Span = [spans[0]![0], spans.at(-1)![1]]
  return formatRanges([cover])
}

/** @throws IndraftError capability.invalid */
export function verifyCapability(key: Uint8Array, text: string, wallMs: number): Capability {
  const [body = '', signature = ''] = text.split('.', 2)
  const given = Buffer.from(signature, 'base64url')
  const expected = mac(key, body)
  if (given.length !== expected.length || !timingSafeEqual(given, expected))
    throw new IndraftError('capability.invalid')
  const capability = capabilitySchema.parse(JSON.parse(Buffer.from(body, 'base64url').toString()))
  if (wallMs > capability.expiresAtMs) throw new IndraftError('capability.invalid', 'The file capability has expired.')
  return capability
}

/** Whether this attempt is one of those the capability was made for. */
export function coversAttempt(capability: Capability, attempt: AttemptName): boolean {
  return capability.fences.length === attempt.fences.length && coversBelow(capability, attempt)
}

/** The same for attempts that a holder made beneath the lease: it adds fences of its own to those of the lease. */
export function coversBelow(capability: Capability, attempt: AttemptName): boolean {
  return (
    capability.campaign === attempt.campaign &&
    capability.step === attempt.step &&
    capability.fences.every((fence, hop) => fence === attempt.fences[hop]) &&
    containsIndex(parseRanges(capability.tasks), attempt.index)
  )
}

function mac(key: Uint8Array, body: string): Buffer {
  return createHmac('sha256', key).update(`indraft.v1.capability\0${body}`).digest()
}
