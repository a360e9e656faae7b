/** A relay that comes back with another authority, password and address: a living pilot follows its credential file. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { createServer, type Server } from 'node:https'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { NatsConnection } from '@nats-io/transport-node'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { Access } from '../../pilot/access.ts'
import { atServer } from '../../pilot/drivers.ts'
import { systemClock } from '../../shared/clock.ts'
import { type PilotCredential, writeCredential } from '../../shared/credentials.ts'
import { connectNats, serveNats } from '../../shared/link-nats.ts'
import { silentLog } from '../../shared/log.ts'
import { type RunningNats, startNats } from '../../shared/servers/nats.ts'
import { keptCertificate, makeAuthority } from '../../shared/tls.ts'

/** An edge that answers each request and each file with its own name. */
interface Edge {
  credential: PilotCredential
  filesUrl: string
  die(): Promise<void>
}

const HOST = '127.0.0.1'
let folder: string
let path: string
let access: Access | undefined
const edges: Edge[] = []

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-access-'))
  path = join(folder, 'pilot.json')
})
afterEach(async () => {
  await access?.close()
  await access?.files().client.close()
  for (const edge of edges.splice(0)) await edge.die()
  rmSync(folder, { recursive: true, force: true })
})

async function startEdge(name: string, site = 'alpha'): Promise<Edge> {
  const dir = join(folder, name)
  mkdirSync(dir)
  const authority = await makeAuthority(dir, name)
  const { certPath, keyPath } = await keptCertificate(authority, dir, 'edge', [HOST, 'localhost'])
  const tls = { cert_file: certPath, key_file: keyPath }
  const users = [{ user: 'pilot', password: name }]
  const configText = `tls ${JSON.stringify(tls)}\nauthorization ${JSON.stringify({ users })}`
  const nats: RunningNats = await startNats({ dir, configText, tls: true })
  const own: NatsConnection = await connectNats({
    ...{ url: nats.url, name, user: 'pilot', password: name, ca: authority.ca, inboxPrefix: '_INBOX_pilot' },
  })
  const answer = async () => Buffer.from(name)
  serveNats(own, answer, silentLog, site, { inboxPrefixOf: () => '_INBOX_pilot' })
  await own.flush()
  const files: Server = createServer({ cert: readFileSync(certPath), key: readFileSync(keyPath) }, (request, reply) => {
    reply.writeHead(request.headers.authorization === `Bearer ${name}` ? 200 : 401).end(name)
  })
  await new Promise<void>((done) => files.listen(0, HOST, done))
  const edge: Edge = {
    credential: {
      kind: 'pilot',
      site,
      nats: {
        ...{ url: nats.url, user: 'pilot', password: name, creds: null },
        ...{ ca: authority.ca, inboxPrefix: '_INBOX_pilot' },
      },
      files: { token: name, ca: authority.ca },
      keys: { centre: 'AAAA' },
    },
    filesUrl: `https://${HOST}:${(files.address() as AddressInfo).port}`,
    async die() {
      await own.close()
      await nats.stop()
      files.closeAllConnections()
      await new Promise((done) => files.close(done))
    },
  }
  edges.push(edge)
  return edge
}

async function loseTo(next: Edge): Promise<void> {
  await edges.splice(0, 1)[0]!.die()
  writeCredential(path, next.credential)
}

const ask = async () => Buffer.from(await access!.request(Buffer.from('?'), 1000)).toString()
/** Long enough for reconnects on a busy machine. */
const PATIENCE = { timeout: 30_000, interval: 100 }

test('edge disk lost - a living pilot follows the new credential: requests and the transfer under way go to the new edge', async () => {
  const old = await startEdge('old')
  writeCredential(path, old.credential)
  access = new Access(path, 'pilot1', systemClock, silentLog).connect()
  access.onWelcome(old.filesUrl)
  await vi.waitFor(async () => expect(await ask()).toBe('old'), PATIENCE)
  const { signal } = new AbortController()
  const next = await startEdge('new')
  await loseTo(next)
  const underWay = atServer({ files: access.files, signal }, async (client, url) => {
    await client.getToFile(`${url}/files/x`, join(folder, 'got'))
    return url
  })
  await vi.waitFor(async () => expect(await ask()).toBe('new'), PATIENCE)
  // Where files are is said by the welcome.
  access.onWelcome(next.filesUrl)
  expect(await underWay).toBe(next.filesUrl)
})

test('edge disk lost - a credential of another site is not followed', async () => {
  const old = await startEdge('old')
  writeCredential(path, old.credential)
  const warned: unknown[] = []
  const log = Object.assign(Object.create(silentLog), { warn: (facts: unknown) => warned.push(facts) })
  access = new Access(path, 'pilot1', systemClock, log).connect()
  await vi.waitFor(async () => expect(await ask()).toBe('old'), PATIENCE)
  await loseTo(await startEdge('foreign', 'beta'))
  await vi.waitFor(
    () => expect(warned).toMatchObject([{ refusal: 'it is for site beta, this pilot is of alpha' }]),
    PATIENCE,
  )
  expect(access.credential.site).toBe('alpha')
  await expect(ask()).rejects.toMatchObject({ code: 'link.timeout' })
})
