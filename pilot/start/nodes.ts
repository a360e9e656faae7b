/**
 * Black holes: nodes that fail, or finish far faster, than others do the same work. Compared per step, because only there
 * are run times alike; against the other nodes of the site, because a step that fails everywhere is no node's fault.
 * Latched: an average that recovers while a node stands idle proves nothing; only a canary, a pilot with a few tasks,
 * opens it again. Changes the state it is given and nothing else.
 */
import { type EndRecord, median } from './end-record.ts'
import type { SiteFile } from './site-file.ts'
import type { NodeWork, State } from './state.ts'

/** Half-width of the interval in standard deviations: 99 % on either side (E. B. Wilson, 1927). */
const Z = 2.33
/** However well others do, a node that fails less than this is no black hole. */
const LEAST_FAILING = 0.2
const HOUR_MS = 3_600_000
const FORGET_AFTER_MS = 24 * HOUR_MS
const LONGEST_LATCH_MS = 24 * HOUR_MS
/** Canaries have this share of an hour's submissions and no more, however many nodes are latched. */
const CANARY_SHARE = 0.25
/** Steps and nodes remembered: those heard of last. */
const MOST_WORK = 64
/** Ends in a row, young and without a word, that ban a node. */
const VANISHED_IN_A_ROW = 2

/** The least and the most that a share of `failed` in `total` may truly be, by Wilson's score interval. */
export function shareBounds(failed: number, total: number): { least: number; most: number } {
  if (total === 0) return { least: 0, most: 1 }
  const share = failed / total
  const z2 = Z * Z
  const middle = (share + z2 / (2 * total)) / (1 + z2 / total)
  const half = (Z * Math.sqrt((share * (1 - share)) / total + z2 / (4 * total * total))) / (1 + z2 / total)
  return { least: Math.max(0, middle - half), most: Math.min(1, middle + half) }
}

type Sample = Pick<NodeWork, 'done' | 'failed' | 'medianMs'>
type Limits = SiteFile['nodes']

/** Why this node's work looks like a black hole's beside that of the others; null where it does not, or too little is known. */
export function suspicion(own: Sample, others: readonly Sample[], limits: Limits): string | null {
  const total = own.done + own.failed
  const known = others.filter(({ done, failed }) => done + failed >= limits.leastTasks)
  if (total < limits.leastTasks || known.length === 0) return null
  // No node counts for more than the usual one: else a few black holes, which eat most tasks, would pass for the rule.
  const most = median(known.map(({ done, failed }) => done + failed))!
  const weightOf = ({ done, failed }: Sample) => Math.min(1, most / (done + failed))
  const failed = known.reduce((sum, one) => sum + one.failed * weightOf(one), 0)
  const all = known.reduce((sum, one) => sum + (one.done + one.failed) * weightOf(one), 0)
  const bar = Math.max(LEAST_FAILING, shareBounds(failed, all).most)
  if (shareBounds(own.failed, total).least > bar) {
    const elsewhere = `${Math.round((100 * failed) / all)} % on ${known.length} other${known.length > 1 ? 's' : ''}`
    return `${own.failed} of ${total} tasks failed here, ${elsewhere}`
  }
  const usual = median(
    known.flatMap(({ done, medianMs }) => (medianMs !== null && done >= limits.leastTasks ? [medianMs] : [])),
  )
  if (
    usual !== null &&
    own.medianMs !== null &&
    own.done >= limits.leastTasks &&
    own.medianMs * limits.timesFaster < usual
  ) {
    return `tasks end after ${Math.round(own.medianMs)} ms here, after ${Math.round(usual)} ms elsewhere`
  }
  return null
}

/**
 * Takes a pilot's work into account, and latches whatever node stands out by it: its own, or one whose pilot ended before
 * there was anybody to compare with, as that of a black hole does.
 * @returns the nodes that were latched now, and why
 */
export function learn(
  state: State,
  site: SiteFile,
  kind: string,
  end: EndRecord,
  nowMs: number,
): { node: string; why: string }[] {
  delete state.vanished[end.node]
  forget(state, nowMs)
  const found: { node: string; why: string }[] = []
  for (const [work, sample] of Object.entries(end.work)) {
    state.work[work] ??= {}
    const nodes = state.work[work]
    nodes[end.node] = { ...together(nodes[end.node], sample, nowMs), kind }
    for (const [node, one] of Object.entries(nodes)) {
      if (Object.hasOwn(state.latches, node)) continue
      const why = suspicion(one, othersOf(state, work, node), site.nodes)
      if (why === null) continue
      const latchKind = one.kind ?? kind
      state.latches[node] = {
        sinceMs: nowMs,
        untilMs: nowMs + site.nodes.latch,
        times: 1,
        kind: latchKind,
        reason: why,
      }
      found.push({ node, why })
    }
  }
  return found
}

/**
 * Looks at what living pilots did so far, which is in no count yet, and latches nodes that stand out.
 * @returns the starts that are to be ended, because a black hole would go on eating: also those whose node is latched by
 *   what another pilot said, or that were to be ended before and still live
 */
export function judgeLiving(
  state: State,
  site: SiteFile,
  living: readonly EndRecord[],
  nowMs: number,
): { start: string; node: string; why: string; isNew: boolean }[] {
  const found: ReturnType<typeof judgeLiving> = []
  const known = living.filter(({ start, node }) => start !== null && !Object.hasOwn(state.latches, node))
  for (const record of living) {
    const start = record.start === null ? undefined : state.pilots[record.start]
    if (!start || start.canaryOf !== null) continue
    const latch = state.latches[record.node]
    if (latch) {
      found.push({ start: start.id, node: record.node, why: latch.reason, isNew: false })
      continue
    }
    for (const [work, sample] of Object.entries(record.work)) {
      const nodes = { ...state.work[work] }
      for (const other of known) {
        const theirs = other.work[work]
        if (theirs && other !== record) nodes[other.node] = together(nodes[other.node], theirs, nowMs)
      }
      const own = together(nodes[record.node], sample, nowMs)
      const others = Object.entries(nodes).flatMap(([name, one]) =>
        name === record.node || Object.hasOwn(state.latches, name) ? [] : [one],
      )
      const why = suspicion(own, others, site.nodes)
      if (why === null) continue
      const untilMs = nowMs + site.nodes.latch
      state.latches[record.node] = { sinceMs: nowMs, untilMs, times: 1, kind: start.kind, reason: why }
      found.push({ start: start.id, node: record.node, why, isNew: true })
      break
    }
  }
  return found
}

function othersOf(state: State, work: string, node: string): NodeWork[] {
  return Object.entries(state.work[work] ?? {}).flatMap(([name, sample]) =>
    name === node || Object.hasOwn(state.latches, name) ? [] : [sample],
  )
}

function together(known: NodeWork | undefined, sample: Sample, nowMs: number): NodeWork {
  if (!known) return { ...sample, atMs: nowMs }
  const done = known.done + sample.done
  const both = known.medianMs !== null && sample.medianMs !== null
  const medianMs = both
    ? (known.medianMs! * known.done + sample.medianMs! * sample.done) / Math.max(1, done)
    : (known.medianMs ?? sample.medianMs)
  return { done, failed: known.failed + sample.failed, medianMs, atMs: nowMs }
}

function forget(state: State, nowMs: number): void {
  for (const [work, nodes] of Object.entries(state.work)) {
    for (const [node, { atMs }] of Object.entries(nodes)) if (nowMs - atMs > FORGET_AFTER_MS) delete nodes[node]
    if (Object.keys(nodes).length === 0) delete state.work[work]
  }
  const lastOf = (work: string) => Math.max(...Object.values(state.work[work]!).map(({ atMs }) => atMs))
  const oldest = Object.keys(state.work).sort((a, b) => lastOf(b) - lastOf(a))
  for (const work of oldest.slice(MOST_WORK)) delete state.work[work]
}

/** A canary came back: released where it did its tasks as others do, latched for longer where not. @returns what became of it */
export function judgeCanary(state: State, site: SiteFile, node: string, end: EndRecord, nowMs: number): string {
  const latch = state.latches[node]
  if (!latch) return 'no latch'
  const tasks = Object.values(end.work).reduce((sum, { done, failed }) => sum + done + failed, 0)
  // Of the codes only 500 is about the node: relay and centre may be away, or somebody ended it.
  if (tasks === 0 && Math.floor(end.code / 100) !== 5) {
    latch.untilMs = nowMs + site.nodes.latch / 4
    return `undecided: the canary did nothing (${end.code})`
  }
  const strict = { ...site.nodes, leastTasks: 1 }
  const bad = Object.entries(end.work).flatMap(([work, sample]) => {
    if (sample.failed > sample.done) return [`${sample.failed} of ${sample.failed + sample.done} tasks failed again`]
    const others = othersOf(state, work, node).map((other) => ({ ...other, failed: 0 }))
    return suspicion({ ...sample, failed: 0 }, others, strict) ?? []
  })[0]
  if (bad === undefined && tasks > 0) {
    delete state.latches[node]
    // What it did while it was bad must not latch it again.
    for (const nodes of Object.values(state.work)) delete nodes[node]
    return 'released'
  }
  latch.times++
  latch.reason = bad ?? `${end.code} ${end.reason}`
  latch.untilMs = nowMs + Math.min(LONGEST_LATCH_MS, site.nodes.latch * 2 ** Math.min(latch.times - 1, 10))
  return `latched on: ${latch.reason}`
}

/** Whether a canary may go at all now. What lies farther ahead than that ever does is of a clock that was set back. */
export function mayTryCanary(state: State, site: SiteFile, nowMs: number): boolean {
  const waitMs = state.canariesFromMs - nowMs
  return waitMs <= 0 || waitMs > Math.max(site.nodes.latch, canaryEveryMs(site))
}

/** One is sent. */
export function noteCanary(state: State, site: SiteFile, nowMs: number): void {
  state.canariesFromMs = nowMs + canaryEveryMs(site)
}

function canaryEveryMs(site: SiteFile): number {
  return HOUR_MS / (CANARY_SHARE * site.caps.submissionsAnHour)
}

/**
 * A canary did not come to its node: refused, not started, or gone without a word. That node comes after the others that
 * are due, and none of them at once: such a canary holds a place that a pilot might have had.
 */
export function postponeCanary(state: State, site: SiteFile, node: string, nowMs: number): void {
  state.canariesFromMs = Math.max(state.canariesFromMs, nowMs + site.nodes.latch)
  const latch = state.latches[node]
  if (latch) latch.untilMs = Math.max(latch.untilMs, nowMs + site.nodes.latch)
}

/**
 * The batch system refuses to hear of nodes that it does not know (any more): what is held against them is forgotten.
 * @returns them
 */
export function forgetUnknown(state: State, known: ReadonlySet<string>): string[] {
  const banned = Object.keys(state.scopes).flatMap((key) => (key.startsWith('node:') ? key.slice('node:'.length) : []))
  const gone = [...new Set([...Object.keys(state.latches), ...banned])].filter((node) => !known.has(node))
  for (const node of gone) {
    delete state.latches[node]
    delete state.scopes[`node:${node}`]
    delete state.vanished[node]
    for (const nodes of Object.values(state.work)) delete nodes[node]
  }
  return gone
}

/** A pilot of this node ended young and said nothing. @returns whether that happened often enough to ban the node */
export function noteVanished(state: State, node: string): boolean {
  const count = (state.vanished[node] ?? 0) + 1
  state.vanished[node] = count
  return count >= VANISHED_IN_A_ROW
}

/** Nodes that no pilot is to be sent to, the latest findings first, and how many more there are. */
export function excludedNodes(state: State, site: SiteFile, nowMs: number): { nodes: string[]; more: number } {
  const found = new Map<string, number>()
  for (const [node, { sinceMs }] of Object.entries(state.latches)) found.set(node, sinceMs)
  for (const [key, { sinceMs, untilMs }] of Object.entries(state.scopes)) {
    if (key.startsWith('node:') && nowMs < untilMs) found.set(key.slice('node:'.length), sinceMs)
  }
  const nodes = [...found].sort(([, a], [, b]) => b - a).map(([node]) => node)
  return {
    nodes: nodes.slice(0, site.nodes.mostExcluded).sort(),
    more: Math.max(0, nodes.length - site.nodes.mostExcluded),
  }
}
