/**
 * Until when this pilot may work. The end of the allocation comes as wall-clock time from others' clocks (Slurm's
 * variables, Machine/Job Features, and one question to Slurm where neither says anything) and is turned into monotonic
 * time at once: a step of the wall clock changes no deadline.
 */
import { execa } from 'execa'
import type { Clock } from '../shared/clock.ts'
import type { BatchEnvironment, PilotConfig } from './config.ts'
import { featureEnds } from './machine-features.ts'

const ASK_SLURM_MS = 30_000

/**
 * The end of this allocation in Unix seconds, as far as anybody says one.
 * @param sinceS an end before this is a mistake of who said it (a machine's last shutdown, say)
 */
export async function allocationEndS(batch: BatchEnvironment, sinceS = 0): Promise<number | null> {
  const ends = await featureEnds(batch.machineFeatures, batch.jobFeatures)
  if (batch.slurmEndTimeS !== null) ends.push(batch.slurmEndTimeS)
  const future = ends.filter((end) => end >= sinceS)
  return future.length > 0 ? Math.min(...future) : null
}

/**
 * For Slurm without SLURM_JOB_END_TIME: one `squeue` for this job. Its controller is the scarcest thing of a site, so
 * this is asked once in a pilot's life, and once more where it did not answer, and only where nothing else says an end.
 * @param path search path
 * @returns null where the job has no end
 * @throws Error where Slurm did not answer
 */
export async function askSlurmForEnd(jobId: string, path: string): Promise<number | null> {
  const { stdout } = await execa('squeue', ['--noheader', '--jobs', jobId, '--format', '%e'], {
    env: { PATH: path, SLURM_TIME_FORMAT: '%s' },
    extendEnv: false,
    timeout: ASK_SLURM_MS,
  })
  return /^\d{9,}$/.test(stdout.trim()) ? Number(stdout) : null
}

type TimeSettings = Pick<PilotConfig, 'runtimeLimit' | 'timeAsked' | 'endMargin'>

/** What Machine/Job Features say may change while it runs. */
export class TimeLeft {
  readonly #clock: Clock
  readonly #batch: BatchEnvironment
  readonly #marginMs: number
  readonly #limitMs: number | null
  readonly #startedS: number
  /** Where nobody says an end: what was asked for, counted from our start. */
  readonly #guessMs: number | null
  #asksLeft = 2
  /** Announced ends in monotonic time: a clock that is stepped later moves none of them. */
  readonly #heard = new Map<number, number>()
  #endMs: number | null
  #asked: Promise<number | null> | undefined

  constructor(clock: Clock, batch: BatchEnvironment, config: TimeSettings) {
    this.#clock = clock
    this.#batch = batch
    this.#marginMs = config.endMargin
    this.#limitMs = config.runtimeLimit === null ? null : clock.monotonicMs() + config.runtimeLimit
    this.#guessMs = config.timeAsked === null ? null : clock.monotonicMs() + config.timeAsked - config.endMargin
    this.#startedS = clock.wallMs() / 1000
    this.#endMs = this.#limitMs
  }

  async refresh(): Promise<void> {
    let endS = await allocationEndS(this.#batch, this.#startedS)
    // What was asked for is near enough: the job's script has asked Slurm already, once for all of its nodes.
    if (endS === null && this.#limitMs === null && this.#guessMs === null) endS = await this.#askSlurm()
    const toldMs = endS === null ? this.#guessMs : this.#monotonicEndMs(endS) - this.#marginMs
    const ends = [toldMs, this.#limitMs].filter((end) => end !== null)
    this.#endMs = ends.length > 0 ? Math.min(...ends) : null
  }

  async #askSlurm(): Promise<number | null> {
    const { slurmJobId, path } = this.#batch
    if (slurmJobId === null) return null
    if (this.#asked === undefined && this.#asksLeft > 0) {
      this.#asksLeft--
      this.#asked = askSlurmForEnd(slurmJobId, path).catch(() => {
        this.#asked = undefined
        return null
      })
    }
    return (await this.#asked) ?? null
  }

  /** Where that wall-clock time lies, by the clock as it was when the time was first heard of. */
  #monotonicEndMs(endS: number): number {
    const known = this.#heard.get(endS)
    if (known !== undefined) return known
    const endMs = this.#clock.monotonicMs() + endS * 1000 - this.#clock.wallMs()
    this.#heard.set(endS, endMs)
    return endMs
  }

  /** Milliseconds that payloads still have, never below 0; null where no end is known. */
  get leftMs(): number | null {
    return this.#endMs === null ? null : Math.max(0, this.#endMs - this.#clock.monotonicMs())
  }
}
