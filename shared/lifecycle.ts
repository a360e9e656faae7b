/**
 * The states that things pass through, one transition table each. Everything else about states (which are final, what
 * may follow) is derived from these tables; docs/LIFECYCLE.md is held to them by a test.
 *
 * A table reads: state -> event -> next state. An event that a state does not list is illegal there: from a peer
 * (late, repeated) it is refused by code and counted, from ourselves it throws.
 */
type Table = Readonly<Record<string, Readonly<Record<string, string>>>>

/** A task, as central keeps it: four bits a task, in this order (see TASK_STATE_CODE). */
export const taskTable = {
  blocked: { 'task.released': 'queued', 'task.skipped': 'skipped', 'task.cancelled': 'cancelled' },
  queued: { 'task.granted': 'assigned', 'task.finished': 'done', 'task.cancelled': 'cancelled', 'task.held': 'held' },
  assigned: {
    'task.started': 'running',
    'task.finished': 'done',
    'task.failed': 'failed',
    'task.held': 'held',
    'task.requeued': 'queued',
    'task.cancelled': 'cancelled',
  },
  running: {
    'task.finished': 'done',
    'task.failed': 'failed',
    'task.held': 'held',
    'task.requeued': 'queued',
    'task.cancelled': 'cancelled',
  },
  held: { 'task.finished': 'done', 'task.requeued': 'queued', 'task.cancelled': 'cancelled' },
  failed: { 'task.requeued': 'queued' },
  done: {},
  skipped: { 'task.reopened': 'blocked' },
  cancelled: {},
} as const satisfies Table
export type TaskState = keyof typeof taskTable

/** One attempt, as the pilot that runs it sees it. */
export const attemptTable = {
  accepted: { 'attempt.fetching': 'staging-in', 'attempt.givenBack': 'given-back', 'attempt.ended': 'ended' },
  'staging-in': { 'attempt.started': 'running', 'attempt.ended': 'ended' },
  running: { 'attempt.exited': 'staging-out', 'attempt.ended': 'ended' },
  'staging-out': { 'attempt.ended': 'ended' },
  ended: { 'attempt.acknowledged': 'acknowledged' },
  'given-back': {},
  acknowledged: {},
} as const satisfies Table
export type AttemptState = keyof typeof attemptTable

/** A lease, as a dispatcher keeps it. Provisional until the holder's next message names the grant's sequence. */
export const leaseTable = {
  provisional: {
    'lease.confirmed': 'confirmed',
    'lease.expired': 'expired',
    'lease.returned': 'returned',
    'lease.emptied': 'closed',
  },
  confirmed: { 'lease.expired': 'expired', 'lease.returned': 'returned', 'lease.emptied': 'closed' },
  expired: {},
  returned: {},
  closed: {},
} as const satisfies Table
export type LeaseState = keyof typeof leaseTable

/** A bundle record: the truth about the tasks that travel together. */
export const bundleTable = {
  queued: { 'bundle.granted': 'leased', 'bundle.emptied': 'closed' },
  leased: { 'bundle.requeued': 'queued', 'bundle.emptied': 'closed' },
  closed: {},
} as const satisfies Table
export type BundleState = keyof typeof bundleTable

/** A pilot, as its dispatcher sees it. */
export const pilotTable = {
  active: { 'pilot.draining': 'draining', 'pilot.left': 'left', 'pilot.lost': 'lost' },
  draining: { 'pilot.left': 'left', 'pilot.lost': 'lost' },
  lost: { 'pilot.greeted': 'active' },
  left: {},
} as const satisfies Table
export type PilotState = keyof typeof pilotTable

/** A relay, as central sees it. Only silence makes it lost; a hello brings it back. */
export const relayTable = {
  active: { 'relay.draining': 'draining', 'relay.left': 'left', 'relay.lost': 'lost' },
  draining: { 'relay.left': 'left', 'relay.lost': 'lost' },
  lost: { 'relay.greeted': 'active' },
  left: { 'relay.greeted': 'active' },
} as const satisfies Table
export type RelayState = keyof typeof relayTable

/** What a user wants of a campaign. What is shown (see campaignState) is computed from this and the task counts. */
export const desiredTable = {
  run: { 'campaign.paused': 'paused', 'campaign.cancelled': 'cancelled' },
  paused: { 'campaign.resumed': 'run', 'campaign.cancelled': 'cancelled' },
  cancelled: {},
} as const satisfies Table
export type DesiredState = keyof typeof desiredTable

export type Counts = Record<TaskState, number>

export const TASK_STATES = [
  'blocked',
  'queued',
  'assigned',
  'running',
  'done',
  'failed',
  'held',
  'skipped',
  'cancelled',
] as const satisfies readonly TaskState[]

/** The four-bit code of each task state in a step's state map. A released version never renumbers them. */
export const TASK_STATE_CODE: Record<TaskState, number> = {
  blocked: 0,
  queued: 1,
  assigned: 2,
  running: 3,
  done: 4,
  failed: 5,
  held: 6,
  skipped: 7,
  cancelled: 8,
}

/** States that nothing leaves by itself, only by a person's retry: a step is over when all its tasks are in one of these. */
export const ENDED_TASK_STATES = ['done', 'failed', 'skipped', 'cancelled'] as const satisfies readonly TaskState[]

/** The next state, or undefined where the event is illegal in this state. */
export function nextState<T extends Table>(
  table: T,
  state: keyof T & string,
  event: string,
): (keyof T & string) | undefined {
  const arrows = table[state]
  // Own keys only: a peer may name an event `constructor`.
  return arrows && Object.hasOwn(arrows, event) ? arrows[event] : undefined
}

/** As nextState, for our own events: an illegal one is a bug and throws. */
export function mustNextState<T extends Table>(table: T, state: keyof T & string, event: string): keyof T & string {
  const next = nextState(table, state, event)
  if (next === undefined) throw new Error(`illegal event ${event} in state ${state}`)
  return next
}

export function emptyCounts(): Counts {
  return { blocked: 0, queued: 0, assigned: 0, running: 0, done: 0, failed: 0, held: 0, skipped: 0, cancelled: 0 }
}

export function sumCounts(all: Iterable<Counts>): Counts {
  const sum = emptyCounts()
  for (const counts of all) for (const state of TASK_STATES) sum[state] += counts[state]
  return sum
}

/** Tasks that are not over yet; held ones wait for a person and count. */
export function openTasks(counts: Counts): number {
  return counts.blocked + counts.queued + counts.assigned + counts.running + counts.held
}

/** What a campaign is shown as. Never stored: the counts and the desired state say it all. */
export type CampaignState = 'running' | 'paused' | 'held' | 'done' | 'done with failures' | 'cancelling' | 'cancelled'

export function campaignState(desired: DesiredState, counts: Counts): CampaignState {
  const open = openTasks(counts)
  if (desired === 'cancelled') return open > 0 ? 'cancelling' : 'cancelled'
  if (open === 0) return counts.failed + counts.skipped > 0 ? 'done with failures' : 'done'
  if (desired === 'paused') return 'paused'
  return open === counts.held + counts.blocked && counts.held > 0 ? 'held' : 'running'
}

export function isCampaignOver(state: CampaignState): boolean {
  return state === 'done' || state === 'done with failures' || state === 'cancelled'
}
