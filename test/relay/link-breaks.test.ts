/** Requests under way when something dies: they end then, not at their timeout, so that their repeats come soon. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { NatsConnection } from '@nats-io/transport-node'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { connectNats, natsLink, serveNats, siteInboxPrefix } from '../../shared/link-nats.ts'
import { silentLog } from '../../shared/log.ts'
import { type RunningNats, startNats } from '../../shared/servers/nats.ts'

const LONGER_THAN_ANY_TEST_MS = 600_000

let dir: string
let server: RunningNats
const open: NatsConnection[] = []
beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), 'indraft-link-'))
  server = await startNats({ dir, configText: '' })
})
afterEach(async () => {
  for (const connection of open.splice(0)) await connection.close()
  await server.stop()
  rmSync(dir, { recursive: true, force: true })
})

async function connection(name: string): Promise<NatsConnection> {
  const made = await connectNats({ url: server.url, name, inboxPrefix: siteInboxPrefix('ALPHA') })
  open.push(made)
  return made
}

/** A dispatcher that takes requests and never answers; resolves `taken` with the first. */
async function silentDispatcher() {
  const taken = Promise.withResolvers<void>()
  const served = await connection('dispatcher')
  const takeOnly = () => {
    taken.resolve()
    return new Promise<never>(() => {})
  }
  const serving = serveNats(served, takeOnly, silentLog, 'ALPHA')
  await served.flush()
  return { taken: taken.promise, die: () => serving.close() }
}

it('link over NATS - a request under way when the nats-server dies ends at once', async () => {
  const dispatcher = await silentDispatcher()
  const link = natsLink(await connection('holder'), 'ALPHA')
  const asked = expect(link.request(Buffer.from('x'), LONGER_THAN_ANY_TEST_MS)).rejects.toMatchObject({
    code: 'link.timeout',
  })
  await dispatcher.taken
  server.signal('SIGKILL')
  await asked
})

it('link over NATS - a request under way when the dispatcher dies ends when another finds nobody there', async () => {
  const dispatcher = await silentDispatcher()
  const link = natsLink(await connection('holder'), 'ALPHA')
  const asked = expect(link.request(Buffer.from('x'), LONGER_THAN_ANY_TEST_MS)).rejects.toMatchObject({
    code: 'link.timeout',
  })
  await dispatcher.taken
  await dispatcher.die()
  await expect(link.request(Buffer.from('y'), 5000)).rejects.toMatchObject({ code: 'link.noResponder' })
  await asked
})

it('link over NATS - a request made while the nats-server is away is answered when it is back', async () => {
  const served = await connection('dispatcher')
  serveNats(served, async (_peer, frame) => frame, silentLog, 'ALPHA')
  const link = natsLink(await connection('holder'), 'ALPHA')
  const { port } = server
  await server.stop()
  while (link.isUp) await new Promise((resolve) => setTimeout(resolve, 5))
  const asked = link.request(Buffer.from('x'), LONGER_THAN_ANY_TEST_MS).catch((error: Error) => error)
  server = await startNats({ dir, configText: '', port })
  const answer = await asked
  // Whoever is back first: the dispatcher (then it is answered), or not yet (then it is told so, and repeats).
  if (answer instanceof Error) expect(answer).toMatchObject({ code: 'link.noResponder' })
  else expect(Buffer.from(answer).toString()).toBe('x')
})
