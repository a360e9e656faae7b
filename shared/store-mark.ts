/**
 * Marks of a dispatcher's store, with a proof that only that dispatcher can make. A holder that shows a mark higher than
 * the store knows says that the store lost writes, which stops granting for everybody; so it has to show that it was
 * given this very mark, and cannot make one up.
 *
 * The key lies beside the store and not in it: a store that went back still knows what it once proved.
 */
import { createHmac, timingSafeEqual } from 'node:crypto'
import type { StoreMark } from './protocol/messages.ts'

/** Of 32 bytes; beats carry it. */
const PROOF_BYTES = 16

export function proveMark(key: Uint8Array, { epoch, sequence }: StoreMark): StoreMark {
  return { epoch, sequence, proof: macOf(key, epoch, sequence).toString('base64url') }
}

/** Whether this mark was made with the key. */
export function isProven(key: Uint8Array, { epoch, sequence, proof = '' }: StoreMark): boolean {
  const given = Buffer.from(proof, 'base64url')
  return given.length === PROOF_BYTES && timingSafeEqual(given, macOf(key, epoch, sequence))
}

/** The key also makes file capabilities, over other words. */
function macOf(key: Uint8Array, epoch: string, sequence: number): Buffer {
  return createHmac('sha256', key).update(`indraft.v1.mark\0${sequence}\0${epoch}`).digest().subarray(0, PROOF_BYTES)
}
