/**
 * Failpoints: named moments at which a test can make this process die, freeze or meet a failing disk. Inert unless the
 * program was started with the `failpoints` setting. Then a moment is armed by a file of its name in that folder, and the
 * first process that passes takes the file (by renaming it to `<name>.hit.<pid>`) and does what it says: `kill` and `stop`
 * send SIGKILL and SIGSTOP to itself, `throw ENOSPC` throws an error with that code. A failpoint switches nothing off.
 */
import { readFileSync, renameSync } from 'node:fs'
import { join } from 'node:path'

/** Every moment, and what has and what has not happened when it is passed. */
export const FAILPOINTS = {
  'campaign.written': 'central: the blobs of a new campaign are written, the campaign does not exist yet',
  'campaign.created': 'central: the campaign exists, nothing of it is expanded and the answer is not sent',
  'campaign.desiredSet':
    'central: pause, resume or cancel is in the store, nothing followed and the answer is not sent',
  'campaign.partCancelled': 'central: a part of the tasks of a cancelled campaign is cancelled, others are not',
  'tasks.partRetried': 'central: a part of the tasks that a person retries is queued again, the answer is not sent',
  'step.prepared': 'central: the manifests of a step are written, none of its tasks is released',
  'step.partReleased': 'central: a range of tasks is released, none of it bundled; the rest of the step may be blocked',
  'retries.fed': 'central: due retries of a step are bundled, its ready tasks are not',
  'grant.persisted': 'central: lease and reply are in the store, the reply is not sent',
  'results.persisted': 'central: results are in the store, their acknowledgement is not sent',
  'session.ended': 'central: a session is declared over, its leases stand',
  'lease.expired': 'central: one lease of an ended session is expired, its others stand',
  'output.published': 'central: one output has its final name, others of the task may not, the task is on the list',
  'block.written': 'central: a block of results is in the blob store, its results are still in the store too',
  'grant.received': 'pilot: grants are in hand, none of their tasks is started and their sequence is not confirmed',
  'payload.started': 'pilot: the payload runs, no message has said so',
  'payload.ended': 'pilot: the payload ended, neither its outputs are stored nor its result written',
  'outputs.stored': 'pilot: outputs and logs are at the dispatcher, the result is not in the outbox',
  'outbox.writing': 'pilot: the result is about to be written into the outbox (the place for `throw ENOSPC`)',
  'outbox.written': 'pilot: the result is in the outbox, it is not reported',
  'report.answered': 'pilot: the dispatcher acknowledged results, the outbox still holds them',
  'bye.begun': 'pilot: payloads are ended and work is withdrawn, the bye is not sent',
  'changes.gathered': 'relay: changes are in memory, the journal lacks them (the place for `throw ENOSPC`)',
  'changes.committed': 'relay: changes are in the journal, nobody was told',
  'journal.salvaging':
    'relay: what a damaged journal still says is read, the new journal that it goes into is not committed',
  'journal.setAside': 'relay: a damaged journal is set aside, the new one with what it said does not have its name yet',
  'lease.received': "relay: central's grants are in hand, neither journalled nor confirmed",
  'sublease.persisted': 'relay: what a pilot was granted is in the journal, the reply is not sent',
  'file.stored': 'relay: an output is on disk under its name, the pilot is not told',
  'results.acknowledged': 'relay: pilots know that it has the results, none of them went up',
  'upload.halfway': 'relay: one output of a result is at central, the others are not',
  'upload.finished': 'relay: all outputs of a result are at central, the result is not',
  'verdict.received': 'relay: central has judged results, the journal still holds them',
  'output.renamed': 'relay: a file has its final name, neither its folder is synced nor the journal told',
} as const
export type Failpoint = keyof typeof FAILPOINTS

let folder: string | null = null

/** Called once by a program's start. @param path the folder, or null: inert */
export function enableFailpoints(path: string | null): void {
  folder = path
}

/** @throws Error with the armed code */
export function failpoint(name: Failpoint): void {
  if (folder !== null) passArmed(folder, name)
}

function passArmed(from: string, name: Failpoint): void {
  const taken = join(from, `${name}.hit.${process.pid}`)
  try {
    renameSync(join(from, name), taken)
  } catch {
    return // not armed, or another process was first
  }
  const [action = '', code = 'EIO'] = readFileSync(taken, 'utf8').trim().split(' ')
  if (action === 'kill') process.kill(process.pid, 'SIGKILL')
  else if (action === 'stop') process.kill(process.pid, 'SIGSTOP')
  else if (action === 'throw') throw Object.assign(new Error(`${code}: failpoint ${name}`), { code })
  else throw new Error(`failpoint ${name}: expected kill, stop or throw CODE, found "${action}"`)
}
