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

test('payload - whether its files could be removed is said, those of a locked folder too', async () => {
  const said = await runBound(`
    import { chmodSync } from 'node:fs'
    import { TestSite } from './testbench.ts'
    const site = await new TestSite().open()
    const run = async (script) => {
      const attempt = site.attempt({ command: ['sh', '-c', script] })
      const removed = new Promise((resolve) => {
        attempt.onRemoved = resolve
      })
      const { end } = await attempt.run()
      return { end, isGone: await removed }
    }
    const said = [await run('mkdir d; chmod 0 d'), await run('chmod 500 ../..')]
    chmodSync(site.folder + '/tasks', 0o700)
    await site.close()
    console.log(JSON.stringify(said))`)
  expect(said).toEqual([
    { end: 'done', isGone: true },
    { end: 'done', isGone: false },
  ])
})
