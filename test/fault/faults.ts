/**
 * How each kind of fault is made, and undone. What a fault touches is said with it: the first result that goes through
 * what was touched after the fault began is the moment from which work goes on again (docs/reliability.md).
 */
import { readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Ack } from './acks.ts'
import type { Clocks } from './clocks.ts'
import type { Disks } from './disks.ts'
import type { Ledger } from './ledger.ts'
import { type Fault, nameOf, programOf, type Target } from './schedule.ts'
import type { Taps } from './taps.ts'
import type { World } from './world.ts'

/** An armed moment that nobody passes within this time is disarmed. */
const ARMED_MS = 30_000
const LOOK_MS = 50
const PAYLOAD_MS = 5000

export interface Tools {
  world: World
  ledger: Ledger
  taps: Taps
  clocks: Clocks | null
  disks: Disks | null
  /** Nothing is left that could pass a moment. */
  isWorkOver: () => boolean
  /** Told, while a relay is down, that its journal is destroyed. */
  onForgotten: (relay: string) => void
  /** Told when it truly begins: a moment that is armed has yet to be passed. */
  onBegun: () => void
}

export interface Ended {
  /** Why nothing happened; undefined where it did. */
  nothing?: string
}

/** Parts that a fault needs for itself: no other one begins on them meanwhile. */
export function holds(fault: Fault): string[] {
  switch (fault.kind) {
    case 'kill':
    case 'stop':
      return [nameOf(fault.target)]
    case 'link':
    case 'delay':
      return [`link-${fault.relay}`]
    case 'replay':
      return [`tap-${fault.relay}-${fault.hop}`]
    case 'failpoint':
    case 'error':
      return [fault.name]
    case 'disk':
      return ['relay' in fault.on ? `relay-${fault.on.relay}` : `pilot@${fault.on.node}`]
    case 'clock':
      return [`clock-${nameOf(fault.target)}`]
    case 'journal':
    case 'away':
      return [`relay-${fault.relay}`, `relay-nats-${fault.relay}`]
    case 'node':
      return [`pilot@${fault.node}`]
  }
}

/** Whether a result that was acknowledged went through what the fault touched. */
export function touches(fault: Fault, ack: Ack): boolean {
  const through = (relay: string) => ack.hop === 'central' && ack.relay === relay
  const onNode = (node: string) => ack.hop === 'relay' && ack.node === node
  const target = (of: Target): boolean => {
    if (of.part === 'relay-nats') return ack.hop === 'relay' && ack.relay === of.relay
    if ('relay' in of) return through(of.relay)
    if ('node' in of) return onNode(of.node)
    return ack.hop === 'central'
  }
  switch (fault.kind) {
    case 'kill':
    case 'stop':
    case 'clock':
      return target(fault.target)
    case 'link':
    case 'delay':
    case 'journal':
      return through(fault.relay)
    // Its pilots', which is the other relay's to make possible.
    case 'away':
      return ack.hop === 'relay' && ack.site === fault.site
    case 'replay':
      return ack.hop === fault.hop && ack.relay === fault.relay
    case 'failpoint':
    case 'error': {
      const program = programOf(fault.name)
      if (program === 'central') return ack.hop === 'central'
      return program === 'relay' ? through(fault.relay) : ack.hop === 'relay' && ack.site === fault.site
    }
    case 'disk':
      return 'relay' in fault.on ? through(fault.on.relay) : onNode(fault.on.node)
    case 'node':
      return onNode(fault.node)
  }
}

/** Resolves when the fault is over and undone. */
export async function make(fault: Fault, tools: Tools): Promise<Ended> {
  const { world, onBegun } = tools
  switch (fault.kind) {
    case 'kill':
    case 'stop':
      return onProcess(fault, tools)
    case 'link': {
      onBegun()
      const { nats, api } = edgeAt(world, fault.relay)
      await Promise.all([nats.set({ mode: fault.mode }), api.set({ mode: fault.mode })])
      await sleep(fault.forMs)
      // What was on its way when a connection breaks never arrives.
      if (fault.loses) for (const link of [nats, api]) link.reset()
      await Promise.all([nats.set({ mode: 'open' }), api.set({ mode: 'open' })])
      return {}
    }
    case 'delay': {
      onBegun()
      const { nats, api } = edgeAt(world, fault.relay)
      await Promise.all([nats.set({ delayMs: fault.delayMs }), api.set({ delayMs: fault.delayMs })])
      await sleep(fault.forMs)
      await Promise.all([nats.set({ delayMs: 0 }), api.set({ delayMs: 0 })])
      return {}
    }
    case 'replay': {
      onBegun()
      const sent = await tools.taps.replay(fault.relay, fault.hop, fault.copies, fault.forMs, fault.number)
      return sent > 0 ? {} : { nothing: 'no message came by' }
    }
    case 'failpoint':
      return atMoment(fault, fault.action, tools)
    case 'error':
      return atMoment(fault, `throw ${fault.code}`, tools)
    case 'disk': {
      if (!tools.disks) return { nothing: 'no private mounts here' }
      const on =
        'relay' in fault.on
          ? { part: `relay-${fault.on.relay}`, path: edgeAt(world, fault.on.relay).state }
          : { part: `pilot-${fault.on.node}`, path: join(world.folder, 'node', fault.on.node) }
      onBegun()
      return tools.disks.make(fault.how, on.path, fault.forMs, world.part(on.part))
    }
    case 'clock': {
      if (!tools.clocks) return { nothing: 'no libfaketime here' }
      onBegun()
      tools.clocks.step(
        fault.target.part === 'pilot' ? `pilot-${fault.target.node}` : nameOf(fault.target),
        fault.stepS,
      )
      return {}
    }
    case 'away': {
      onBegun()
      await world.part(`relay-${fault.relay}`).whileDown(async () => {
        const pid = world.pidOf({ part: 'relay-nats', site: fault.site, relay: fault.relay })
        if (pid !== undefined) signal(pid, 'SIGKILL')
        await sleep(fault.forMs)
      })
      return {}
    }
    case 'journal':
      return onJournal(fault, tools)
    case 'node': {
      const part = world.part(`pilot-${fault.node}`)
      onBegun()
      await part.whileDown(() => empty(join(world.folder, 'node', fault.node)))
      return {}
    }
  }
}

function edgeAt(world: World, name: string) {
  const edge = world.relays.get(name)
  if (!edge) throw new Error(`no relay ${name}`)
  return edge
}

async function onProcess(fault: Extract<Fault, { kind: 'kill' | 'stop' }>, tools: Tools): Promise<Ended> {
  const { world, ledger, onBegun } = tools
  const { target } = fault
  const pid = target.part === 'payload' ? await comingPayload(ledger, target.node) : world.pidOf(target)
  if (pid === undefined) return { nothing: 'it was not alive' }
  onBegun()
  if (fault.kind === 'stop') {
    if (!signal(pid, 'SIGSTOP')) return { nothing: 'it was not alive' }
    await sleep(fault.forMs)
    signal(pid, 'SIGCONT')
    return {}
  }
  if (target.part === 'payload' || target.part === 'relay-nats') {
    return signal(pid, 'SIGKILL') ? {} : { nothing: 'it was not alive' }
  }
  await world.part(target.part === 'pilot' ? `pilot-${target.node}` : nameOf(target)).kill(fault.downMs)
  return {}
}

function signal(pid: number, name: NodeJS.Signals): boolean {
  try {
    process.kill(pid, name)
    return true
  } catch {
    return false
  }
}

/** The next one there within a few seconds. */
async function comingPayload(ledger: Ledger, node: string): Promise<number | undefined> {
  const deadline = performance.now() + PAYLOAD_MS
  for (;;) {
    const pid = livingPayload(ledger, node)
    if (pid !== undefined || performance.now() > deadline) return pid
    await sleep(LOOK_MS)
  }
}

/** A payload that is in the ledger and truly still runs: a process id may be another's by now. */
function livingPayload(ledger: Ledger, node: string): number | undefined {
  return ledger.open(node).find(({ pid, attempt }) => {
    try {
      return readFileSync(`/proc/${pid}/environ`, 'utf8').includes(`INDRAFT_ATTEMPT=${attempt}\0`)
    } catch {
      return false
    }
  })?.pid
}

/** Arms a moment, waits until somebody passes it, lets go what was stopped there. */
async function atMoment(
  fault: Extract<Fault, { kind: 'failpoint' | 'error' }>,
  action: string,
  { world, onBegun, isWorkOver }: Tools,
): Promise<Ended> {
  const program = programOf(fault.name)
  const folder = world.failpoints(program, fault)
  const armed = join(folder, fault.name)
  writeFileSync(`${armed}.new`, `${action}\n`)
  renameSync(`${armed}.new`, armed)
  const deadline = performance.now() + ARMED_MS
  for (;;) {
    const hit = readdirSync(folder).find((name) => name.startsWith(`${fault.name}.hit.`))
    if (hit !== undefined) {
      onBegun()
      rmSync(join(folder, hit))
      if (action !== 'stop') return {}
      await sleep((fault as { forMs: number }).forMs)
      signal(Number(hit.slice(hit.lastIndexOf('.') + 1)), 'SIGCONT')
      return {}
    }
    if (performance.now() > deadline || isWorkOver()) {
      rmSync(armed, { force: true })
      return { nothing: 'nobody passed this moment' }
    }
    await sleep(LOOK_MS)
  }
}

async function onJournal(
  fault: Extract<Fault, { kind: 'journal' }>,
  { world, onBegun, onForgotten }: Tools,
): Promise<Ended> {
  const edge = edgeAt(world, fault.relay)
  const path = join(edge.state, 'journal.sqlite')
  onBegun()
  await world.part(`relay-${fault.relay}`).whileDown(async () => {
    onForgotten(fault.relay)
    if (fault.how === 'disk lost') {
      empty(edge.state)
      await edge.join()
      return
    }
    for (const file of [path, `${path}-wal`]) {
      const bytes = readIfThere(file)
      if (!bytes || bytes.length < 64) continue
      // The tail is what a power cut may leave half-written; the middle is what a bad disk returns.
      if (fault.how === 'tail cut') writeFileSync(file, bytes.subarray(0, Math.floor(bytes.length * 0.9)))
      else
        writeFileSync(file, Buffer.from(bytes).fill(0xa5, Math.floor(bytes.length / 3), Math.floor(bytes.length / 2)))
    }
  })
  return {}
}

function readIfThere(path: string): Buffer | undefined {
  try {
    return readFileSync(path)
  } catch {
    return undefined
  }
}

/** The folder itself may be a mount. */
function empty(folder: string): void {
  for (const name of readdirSync(folder)) rmSync(join(folder, name), { recursive: true, force: true })
}
