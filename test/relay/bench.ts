/**
 * A relay in parts in a folder of its own, between a scripted centre and the pilots that a test plays, on a clock that
 * runs fast. What a crash leaves is in the folder until close().
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { frameHandler } from '../../shared/dispatcher.ts'
import { memoryLink } from '../../shared/link.ts'
import { silentLog } from '../../shared/log.ts'
import { SimulatedHolder } from '../conformance/simulated-holder.ts'
import { type FastClock, fastClock } from '../fast-clock.ts'
import { type PartsOptions, type RelayInParts, relayInParts, until } from './relay-in-parts.ts'
import { ScriptedCentre } from './scripted-centre.ts'

export interface BenchOptions<C> {
  centre?: C
  /** How much faster than real time the clock runs. */
  rate?: number
  /** Of the relay, at every start. */
  parts?: Partial<PartsOptions>
}

export class RelayBench<C extends ScriptedCentre = ScriptedCentre> {
  readonly folder = mkdtempSync(join(tmpdir(), 'indraft-relay-bench-'))
  readonly clock: FastClock
  readonly centre: C
  relay!: RelayInParts
  readonly #parts: Partial<PartsOptions>

  private constructor({ centre, rate = 20, parts = {} }: BenchOptions<C>) {
    this.clock = fastClock(rate)
    this.centre = centre ?? (new ScriptedCentre() as C)
    this.#parts = parts
  }

  static async open<C extends ScriptedCentre = ScriptedCentre>(options: BenchOptions<C> = {}): Promise<RelayBench<C>> {
    const bench = new RelayBench<C>(options)
    await bench.start()
    return bench
  }

  /** Starts the relay on what is in the folder. */
  async start(more: Partial<PartsOptions> = {}): Promise<RelayInParts> {
    const { clock, folder, centre } = this
    const link = memoryLink({ site: 'ALPHA' }, frameHandler(centre, silentLog), clock)
    this.relay = await relayInParts({ clock, link, folder, ...this.#parts, ...more })
    return this.relay
  }

  /** Stops the relay as a crash does, lets `damage` have its files, and starts it again. */
  async restart(damage: () => void = () => {}): Promise<void> {
    await this.relay.crash()
    damage()
    await this.start()
  }

  /** One that has not said hello; it speaks to whichever relay runs. */
  holder(name: string): SimulatedHolder {
    const link = memoryLink({ site: 'ALPHA' }, (peer, frame) => this.relay.handler(peer, frame), this.clock)
    return new SimulatedHolder(link, 'pilot', name)
  }

  async pilot(name: string): Promise<SimulatedHolder> {
    const pilot = this.holder(name)
    await pilot.hello()
    return pilot
  }

  buffered(tasks: number): Promise<boolean> {
    return until(`${tasks} tasks in the buffer`, () => this.relay.buffer.counts().free === tasks)
  }

  atCentre(count: number): Promise<boolean> {
    return until(`${count} results at the centre`, () => this.centre.results.length === count)
  }

  settled(): Promise<boolean> {
    return until('nothing is on its way up', () => this.relay.outgoing.waiting === 0)
  }

  async close(): Promise<void> {
    await this.relay?.crash()
    rmSync(this.folder, { recursive: true, force: true })
  }
}
