/**
 * How a pilot lives with a file system that never answers, as a site's shared one may. Each call that hangs holds one of
 * the few threads through which Node reaches any disk, the local one with the results included, and a process with such
 * a thread cannot end in the ordinary way.
 *
 * What always holds: of all that is asked again and again one question at most is under way in this process; nobody waits
 * longer than a bound for a last word; the process ends with its own exit status whatever hangs.
 */

import { addAbortListener } from 'node:events'

/** The end of the line in which questions wait: one for the process, as its threads are. */
let last: Promise<unknown> = Promise.resolve()

/** What one part of the pilot asks again and again. */
export class Questions {
  readonly #open = new Set<string>()

  /** Asked when those before it are answered; not at all while the one of this name is. */
  ask(name: string, look: () => Promise<void>): void {
    if (this.#open.has(name)) return
    this.#open.add(name)
    const asked = last.then(look)
    last = asked.catch(() => {})
    void asked.finally(() => this.#open.delete(name))
  }
}

/** Whether it was done by then. Where it rejects, this does. */
export async function isDoneWithin(ms: number, act: Promise<unknown>): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<false>((resolve) => {
    timer = setTimeout(resolve, ms, false)
  })
  try {
    return await Promise.race([act.then(() => true), late])
  } finally {
    clearTimeout(timer)
  }
}

/** As isDoneWithin, counted from when it is told to end. */
export async function isEndedWithin(ms: number, told: AbortSignal, act: Promise<unknown>): Promise<boolean> {
  const heard = Promise.withResolvers<void>()
  const listening = addAbortListener(told, () => heard.resolve())
  try {
    await Promise.race([act, heard.promise])
  } finally {
    listening[Symbol.dispose]()
  }
  return await isDoneWithin(ms, act)
}

/** Ordinary calls that happen to be under way are done within this. */
const SETTLE_MS = 250
const LOOK_EVERY_MS = 10

/** Ends this process with `process.exitCode`. The ordinary way would wait for every thread. */
export async function leaveProcess(): Promise<never> {
  const code = Number(process.exitCode ?? 0)
  const untilMs = performance.now() + SETTLE_MS
  const isBusy = () => process.getActiveResourcesInfo().some((name) => /Req/.test(name))
  while (isBusy() && performance.now() < untilMs) await new Promise((resolve) => setTimeout(resolve, LOOK_EVERY_MS))
  // Another program in our place ends all threads at once, and unlike a signal it leaves the exit status to us.
  if (isBusy()) process.execve!('/bin/sh', ['sh', '-c', `exit ${code}`], {})
  process.exit(code)
}
