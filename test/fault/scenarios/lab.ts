/**
 * A small world for one fault at a time: the whole product as real processes, started for a test and gone with it. What a
 * run of the suite does at random is done here on purpose, and judged by the same judge.
 */
import { mkdirSync, mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { CampaignView } from '../../../central/campaigns/model.ts'
import type { Failpoint } from '../../../shared/failpoint.ts'
import { isCampaignOver } from '../../../shared/lifecycle.ts'
import { Acks } from '../acks.ts'
import { type JudgeOptions, judge, type Verdict } from '../judge.ts'
import { Ledger } from '../ledger.ts'
import { buildPrograms } from '../programs.ts'
import { programOf } from '../schedule.ts'
import { planWave, type Wave } from '../work.ts'
import { listed, startWorld, until, type World } from '../world.ts'

const SEED = 1

export interface SmallWorld {
  world: World
  ledger: Ledger
  acks: Acks
  /** Submits a wave of so many tasks. */
  submit(tasks: number, more?: { longestS?: number; name?: string }): Promise<Wave>
  show(wave: Wave): Promise<CampaignView>
  /** Resolves when so many tasks are settled by the ledger. */
  settled(tasks: number): Promise<void>
  over(wave: Wave): Promise<CampaignView>
  arm(name: Failpoint, action: string, relay?: string): void
  /** Resolves with the process id of who passed the moment. */
  passed(name: Failpoint, relay?: string): Promise<number>
  /** Whether a part's log has a line with this message. */
  said(part: string, message: string): boolean
  judge(forgetful?: JudgeOptions['forgetful']): Promise<Verdict>
  stop(): Promise<void>
}

export interface SmallOptions {
  centrals?: number
  sites?: Record<string, string[]>
  relays?: Record<string, string[]>
  timeScale?: number
  outageMs?: number
  slots?: number
}

/** What a good end looks like. */
export const NOTHING_LOST = { tasksLost: 0, doubleCounted: 0, acknowledgedLost: 0, findings: [], words: [] }

export async function startSmallWorld(options: SmallOptions = {}): Promise<SmallWorld> {
  const folder = mkdtempSync(join(tmpdir(), 'indraft-scenario-'))
  const ledgerFolder = join(folder, 'ledger')
  const final = join(folder, 'final')
  for (const path of [join(ledgerFolder, 'met'), final]) mkdirSync(path, { recursive: true })
  const world = await startWorld({
    folder,
    programs: buildPrograms(join(folder, 'programs')),
    sites: { alpha: ['alpha-1'] },
    centrals: 1,
    timeScale: 0.05,
    outageMs: 60_000,
    slots: 4,
    clocks: null,
    say: () => {},
    ...options,
  })
  const ledger = new Ledger(join(ledgerFolder, 'events'))
  const acks = new Acks(world)
  const waves: Wave[] = []
  const reading = setInterval(() => {
    ledger.read()
    acks.read()
  }, 50)
  const folderOf = (name: Failpoint, relay = 'alpha') =>
    world.failpoints(programOf(name), { relay, site: world.relays.get(relay)!.site })
  const show = async ({ name }: Wave) =>
    (await world.ask((client) => client.call('showCampaign', { params: { campaign: name } }))) as CampaignView
  return {
    world,
    ledger,
    acks,
    show,
    async submit(tasks, { longestS = 0.3, name = `wave-${waves.length + 1}` } = {}) {
      const payload = resolve(import.meta.dirname, '../payload.sh')
      const work = { seed: SEED, tasks, waves: 1, ledger: ledgerFolder, payload, final, longestS }
      const wave = planWave(work, name, SEED + waves.length, tasks)
      waves.push(wave)
      await world.ask((client) => client.call('submitCampaign', { body: { source: wave.yaml, tables: wave.tables } }))
      return wave
    },
    settled: (tasks) => until(`${tasks} tasks are settled`, () => ledger.settled >= tasks),
    async over(wave) {
      let view = await show(wave)
      await until(`${wave.name} is over`, async () => {
        view = await show(wave)
        return isCampaignOver(view.state)
      })
      return view
    },
    arm(name, action, relay) {
      const path = join(folderOf(name, relay), name)
      writeFileSync(`${path}.new`, `${action}\n`)
      renameSync(`${path}.new`, path)
    },
    async passed(name, relay) {
      const hit = () => listed(folderOf(name, relay)).find((file) => file.startsWith(`${name}.hit.`))
      await until(`somebody passes ${name}`, () => hit() !== undefined)
      const file = hit()!
      rmSync(join(folderOf(name, relay), file))
      return Number(file.slice(`${name}.hit.`.length))
    },
    said: (part, message) => world.saidOf(part, message),
    judge: (forgetful = new Map()) =>
      judge({ world, ledger, waves, seed: SEED, final, acks: () => acks.all, forgetful }),
    async stop() {
      clearInterval(reading)
      await world.stop()
      await sleep(0)
      rmSync(folder, { recursive: true, force: true })
    },
  }
}
