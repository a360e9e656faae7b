/** Hours of a site without work whose relay does not answer: what Slurm is asked, with real files, calls and sockets. */

import { mkdtempSync, rmSync } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { writeCredential } from '../../shared/credentials.ts'
import { silentLog } from '../../shared/log.ts'
import { type CountedSlurm, countedSlurm } from '../../test/counted-slurm.ts'
import { writeEndRecord } from './end-record.ts'
import { foldersOf } from './files.ts'
import { tick } from './tick.ts'

const MINUTE = 60_000
const HOUR = 60 * MINUTE
/** A pilot without work leaves after 80 % of the fizzle time. */
const IDLE_MS = 8 * MINUTE

let folder: string
let slurm: CountedSlurm
let silent: Server
const sockets = new Set<Socket>()
let asked = 0
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-unanswered-'))
  // Takes connections, and says nothing.
  silent = createServer((socket) => {
    asked++
    sockets.add(socket.on('error', () => {}))
  })
  await new Promise<void>((resolve) => silent.listen(0, '127.0.0.1', resolve))
  const { port } = silent.address() as { port: number }
  const path = join(folder, 'pilot.json')
  writeCredential(path, {
    ...{ kind: 'pilot', site: 'ALPHA', files: { token: 't', ca: null }, keys: {} },
    nats: {
      url: `nats://127.0.0.1:${port}`,
      user: 'pilot',
      password: 'p',
      creds: null,
      ca: null,
      inboxPrefix: '_INBOX_pilot',
    },
  })
  slurm = countedSlurm(path, 'ask: {patience: 20ms},')
})
afterEach(async () => {
  slurm.close()
  for (const socket of sockets) socket.destroy()
  await new Promise((resolve) => silent.close(resolve))
  rmSync(folder, { recursive: true, force: true })
})

it('unanswered - without work and without an answer Slurm is called at most ten times an hour', async () => {
  const { ends } = foldersOf(slurm.site)
  const born = new Map<string, number>()
  for (let minute = 0; minute < 3 * 60; minute++) {
    slurm.nowMs += MINUTE
    await tick(slurm.site, slurm.ports(), silentLog)
    for (const id of slurm.jobs()) {
      if (!born.has(id)) born.set(id, slurm.nowMs)
      if (slurm.nowMs - born.get(id)! < IDLE_MS) continue
      await writeEndRecord(ends, {
        ...{ version: 1, start: id, pilot: 'p', node: 'n1', job: '1', code: 300, reason: 'no work' },
        ...{ livedMs: IDLE_MS, work: {} },
      })
      slurm.end()
    }
  }
  const calls = slurm.calls()
  const most = Math.max(
    ...calls.map(({ atMs }) => calls.filter((one) => one.atMs >= atMs && one.atMs < atMs + HOUR).length),
  )
  const last = calls.filter(({ atMs }) => atMs > slurm.nowMs - HOUR).length
  expect(asked).toBeGreaterThan(80)
  // It probes all the same: there may be work, and nobody says so.
  expect(calls.filter(({ program }) => program === 'sbatch').length).toBeGreaterThanOrEqual(3)
  expect(most).toBeLessThanOrEqual(10)
  expect(last).toBeLessThanOrEqual(4)
})
