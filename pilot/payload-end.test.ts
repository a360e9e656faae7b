/** What comes after a payload's end: an order to end, which signals nobody, and the removal of what it left. */
import { expect, onTestFinished, test } from 'vitest'
import { systemClock } from '../shared/clock.ts'
import { silentLog } from '../shared/log.ts'
import { runBound } from './bound.ts'
import { linuxProcesses } from './processes.ts'
import { TestSite } from './testbench.ts'
import { Watcher } from './watch.ts'

test('payload - told to end while its outputs are being stored it signals nobody: its pids may be others’ by now', async () => {
  const site = await new TestSite().open()
  onTestFinished(() => site.close())
  const storing = Promise.withResolvers<void>()
  const put = site.store.put.bind(site.store)
  const told = Promise.withResolvers<void>()
  site.store.put = async (...file) => {
    storing.resolve()
    await told.promise
    return await put(...file)
  }
  const kernel = linuxProcesses()
  const signals: string[] = []
  const source = {
    ...kernel,
    kill: (pid: number, signal: NodeJS.Signals) => {
      signals.push(`${pid} ${signal}`)
      kernel.kill(pid, signal)
    },
  }
  const watcher = new Watcher({ source, clock: systemClock, log: silentLog, run: site.run, everyMs: 100 })
  onTestFinished(() => watcher.close())
  const outputs = [{ path: 'out', url: null, optional: false }]
  const attempt = site.attempt({ command: ['sh', '-c', 'echo here >out'], outputs }, {}, { watcher })
  const running = attempt.run()
  await storing.promise
  expect(attempt.state).toBe('staging-out')
  const before = [...signals]
  attempt.end('attempt.cancelled', 'ordered')
  attempt.end('node.ending', 'hurried', 0)
  told.resolve()
  expect(await running).toMatchObject({ end: 'failed', reason: 'attempt.cancelled' })
  expect(signals).toEqual(before)
})

test('payload - it takes scratch for as long as its files cannot be removed', async () => {
  const said = await runBound(`
    import { chmodSync, readdirSync } from 'node:fs'
    import { setImmediate as turn } from 'node:timers/promises'
    import { pino } from 'pino'
    import { TestSite } from './testbench.ts'
    const given = Promise.withResolvers()
    const log = pino({}, { write: (line) => JSON.parse(line).msg === 'folder.notRemoved' && given.resolve('notRemoved') })
    const site = await new TestSite(log).open()
    const run = async (script) => {
      const said = []
      const attempt = site.attempt({ command: ['sh', '-c', script] })
      const removed = new Promise((resolve) => {
        attempt.onRemoved = () => {
          said.push('removed')
          resolve()
        }
      })
      const { end } = await attempt.run()
      await Promise.race([removed, given.promise.then(() => said.push('notRemoved'))])
      for (let left = 10; left > 0; left--) await turn()
      return [end, ...said]
    }
    const said = { removed: await run('mkdir d; chmod 0 d'), kept: await run('chmod 500 ../..') }
    chmodSync(site.folder + '/tasks', 0o700)
    await site.close()
    console.log(JSON.stringify(said))`)
  expect(said).toEqual({ removed: ['done', 'removed'], kept: ['done', 'notRemoved'] })
})
