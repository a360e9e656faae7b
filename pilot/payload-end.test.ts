/** An attempt that is told to end when its payload has ended already: real processes, every signal noted. */
import { expect, onTestFinished, test } from 'vitest'
import { systemClock } from '../shared/clock.ts'
import { silentLog } from '../shared/log.ts'
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
