/**
 * The one catalogue of what can go wrong: code, HTTP status where the API says it, whether repeating the same request
 * can help, whose fault it is, and what it means. Codes cross the wire and are matched; nobody matches prose.
 * docs/reference/errors.md is generated from this table.
 *
 * Refusals (an answer to a peer) are returned as values; IndraftError carries one where a call stack has to be left.
 */
export type Fault = 'user' | 'site' | 'system'

interface ErrorEntry {
  status: number
  retry: boolean
  fault: Fault
  meaning: string
}

const entry = (status: number, retry: boolean, fault: Fault, meaning: string): ErrorEntry => ({
  status,
  retry,
  fault,
  meaning,
})

export const ERRORS = {
  // The wire
  'message.garbled': entry(400, false, 'system', 'The bytes are not a message of this protocol.'),
  'message.tooLarge': entry(413, false, 'system', 'The message is larger than 48 kB.'),
  'message.unknown': entry(400, false, 'system', 'The message type is not known here.'),
  'message.invalid': entry(400, false, 'system', 'A field of the message is missing or has the wrong type.'),
  'protocol.version': entry(400, false, 'site', 'The protocol version is not spoken here.'),
  'code.unknown': entry(502, false, 'system', 'The other side refused with a code that only a newer release knows.'),
  'session.unknown': entry(404, true, 'system', 'The session is not known or was declared dead: say hello again.'),
  'session.sequence': entry(409, false, 'system', 'The pull is older than one already answered.'),
  'site.unknown': entry(403, false, 'site', 'The site is not registered here.'),
  'site.disabled': entry(403, false, 'site', 'The site was disabled by the centre.'),
  'dispatcher.busy': entry(503, true, 'system', 'The dispatcher cannot answer now: ask again later.'),
  'dispatcher.halted': entry(503, true, 'system', 'Granting is stopped because the store lost acknowledged writes.'),
  'store.full': entry(507, true, 'system', 'The store is over 80 % full, or a disk is full: new work is refused.'),
  'link.timeout': entry(504, true, 'system', 'No answer came in time.'),
  'link.noResponder': entry(503, true, 'system', 'Nobody answers on this link now.'),
  'link.closed': entry(503, false, 'system', 'The link was closed on this side.'),

  // People and their requests
  'auth.missing': entry(401, false, 'user', 'A bearer token is needed.'),
  'auth.invalid': entry(401, false, 'user', 'The token is not valid.'),
  'auth.forbidden': entry(403, false, 'user', 'The token does not allow this.'),
  'request.invalid': entry(400, false, 'user', 'A field of the request is missing or has the wrong form.'),
  'request.notFound': entry(404, false, 'user', 'There is nothing of that name.'),
  'request.ambiguous': entry(409, false, 'user', 'The name fits several things: say more exactly which is meant.'),
  'campaign.invalid': entry(422, false, 'user', 'The campaign file is not acceptable.'),
  'campaign.conflict': entry(409, false, 'user', 'A campaign of this name exists with other content.'),
  'campaign.unmatchable': entry(422, false, 'user', 'No registered site can run a step of the campaign (--strict).'),
  'join.invalid': entry(403, false, 'site', 'The join token is wrong, used or expired.'),
  'internal.error': entry(500, true, 'system', 'Something failed here that should not; the log has the cause.'),
  'state.taken': entry(409, true, 'site', 'Another process works in this state folder.'),
  'server.missing': entry(
    0,
    false,
    'site',
    'A server program that is needed here was not found and could not be fetched.',
  ),
  'server.failed': entry(0, true, 'site', 'A server program that was started here ended or does not answer.'),

  // Files
  'file.conflict': entry(409, false, 'system', 'A file of this name with other content is already there.'),
  'file.checksum': entry(422, false, 'system', 'The content does not have the promised checksum.'),
  'file.tooLarge': entry(413, false, 'site', 'The file is larger than what is accepted here.'),
  'file.range': entry(416, false, 'system', 'The range lies outside the file.'),
  'file.unreachable': entry(502, true, 'site', 'The place the file comes from does not answer.'),

  // Trust
  'signature.invalid': entry(403, false, 'system', 'The signature does not match: the work is refused.'),
  'signature.expired': entry(403, false, 'system', 'The signed work is past its expiry.'),
  'envelope.widened': entry(403, false, 'system', 'The unsigned envelope names tasks that the signed bundle lacks.'),
  'capability.invalid': entry(403, false, 'system', 'The file capability is missing, wrong or expired.'),
  'policy.refused': entry(403, false, 'site', "The site's policy does not allow this work."),

  // How an attempt ends. `payload` and `infrastructure` below say which credit a retry uses.
  'payload.exit': entry(0, true, 'user', 'The command ended with an exit status other than 0.'),
  'payload.signal': entry(0, true, 'user', 'The command was ended by a signal that was not ours.'),
  'payload.walltime': entry(0, true, 'user', 'The task ran longer than its walltime.'),
  'payload.memory': entry(0, true, 'user', 'The task used more memory than it asked for.'),
  'payload.scratch': entry(0, true, 'user', 'The task’s inputs and what it wrote are more than its scratch space.'),
  'payload.stalled': entry(0, true, 'user', 'The task used no processor and wrote nothing for too long.'),
  'payload.noCommand': entry(0, false, 'user', 'The command does not exist or cannot be executed.'),
  'payload.outputMissing': entry(0, true, 'user', 'The task ended well but a promised output is not there.'),
  'payload.outputRefused': entry(
    0,
    false,
    'user',
    'An output is no regular file in the task folder, cannot be read, or changed while it was stored.',
  ),
  'stage.inputMissing': entry(0, false, 'user', 'An input is not there.'),
  'stage.inputChecksum': entry(0, true, 'user', 'An input does not have the promised checksum.'),
  'stage.inFailed': entry(0, true, 'site', 'An input could not be fetched.'),
  'stage.outFailed': entry(0, true, 'site', 'An output could not be stored.'),
  'image.missing': entry(0, true, 'site', 'The container image is not there or cannot be read.'),
  // Whose copy is bad cannot be told at the node: another site may have a good one, so it is not charged to the payload.
  'image.damaged': entry(0, true, 'site', 'The container image is not whole, not the promised one, or not an image.'),
  'image.architecture': entry(0, false, 'user', 'The container image is for another processor architecture.'),
  'software.failed': entry(0, true, 'site', 'CVMFS or EESSI could not be set up for the payload.'),
  'container.failed': entry(0, true, 'site', 'The container runtime could not start the payload.'),
  'node.lost': entry(0, true, 'site', 'The pilot or its node was not heard of any more.'),
  'grant.unconfirmed': entry(0, true, 'site', 'The task was granted several times and no holder said that it has it.'),
  'node.scratchFull': entry(0, true, 'site', 'The node ran out of scratch space.'),
  'node.ending': entry(0, true, 'site', 'The pilot was told to end or ran out of time while the task ran.'),
  'node.fault': entry(0, true, 'site', 'The pilot could not prepare or watch the task.'),
  'attempt.cancelled': entry(0, false, 'user', 'The attempt was cancelled: by a user, or because another one won.'),
} as const satisfies Record<string, ErrorEntry>

export type ErrorCode = keyof typeof ERRORS
export const ERROR_CODES = Object.keys(ERRORS) as [ErrorCode, ...ErrorCode[]]

/** Which retry credit an attempt's end is charged to. Only `user` faults are the payload's own. */
export type Charge = 'payload' | 'infrastructure'

export function chargeOf(code: ErrorCode): Charge {
  return ERRORS[code].fault === 'user' ? 'payload' : 'infrastructure'
}

/** A refusal as it crosses a wire or is shown. `path` names the field, as in `steps.sim.resources.memory`. */
export interface Refusal {
  code: ErrorCode
  message: string
  path?: string | undefined
  /** Ask again after this long, where repeating can help. */
  retryAfterMs?: number | undefined
}

export function refusal(code: ErrorCode, detail?: string, more: Partial<Refusal> = {}): Refusal {
  return { code, message: detail ?? ERRORS[code].meaning, ...more }
}

/** Carries a refusal up a call stack; anything else that is thrown is a bug. */
export class IndraftError extends Error {
  readonly code: ErrorCode
  readonly path: string | undefined
  readonly retryAfterMs: number | undefined

  constructor(code: ErrorCode, detail?: string, more: { path?: string; retryAfterMs?: number; cause?: unknown } = {}) {
    super(detail ?? ERRORS[code].meaning, more.cause === undefined ? undefined : { cause: more.cause })
    this.name = 'IndraftError'
    this.code = code
    this.path = more.path
    this.retryAfterMs = more.retryAfterMs
  }

  get refusal(): Refusal {
    return { code: this.code, message: this.message, path: this.path, retryAfterMs: this.retryAfterMs }
  }
}

export function isIndraftError(error: unknown, ...codes: ErrorCode[]): error is IndraftError {
  return error instanceof IndraftError && (codes.length === 0 || codes.includes(error.code))
}
