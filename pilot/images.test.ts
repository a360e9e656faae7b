import { createHash } from 'node:crypto'
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { systemClock } from '../shared/clock.ts'
import { FileClient } from '../shared/files/client.ts'
import { silentLog } from '../shared/log.ts'
import type { Transfer } from './drivers.ts'
import { ImageStore } from './images.ts'

const content = 'an image, as far as this is concerned'
const sha256 = createHash('sha256').update(content).digest('hex')
const image = `http://images.example/x.sif#sha256:${sha256}`

let folder: string
let server: Server
let client: FileClient
let asked: string[]
let answer: { status: number; body: string }
/** Answers come when this has resolved. */
let gate: Promise<void>

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-images-'))
  client = new FileClient({ ca: null, token: null })
  asked = []
  answer = { status: 200, body: content }
  gate = Promise.resolve()
  server = createServer(async (request, response) => {
    asked.push(request.url ?? '')
    await gate
    response.writeHead(answer.status).end(answer.body)
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
})
afterEach(async () => {
  await client.close()
  server.closeAllConnections()
  await new Promise((resolve) => server.close(resolve))
  rmSync(folder, { recursive: true, force: true })
})

const store = () => new ImageStore({ folder: join(folder, 'images'), clock: systemClock, log: silentLog })
const transfer = (more: Partial<Transfer> = {}): Transfer => ({
  files: () => ({ client, url: `http://127.0.0.1:${(server.address() as AddressInfo).port}` }),
  capability: null,
  signal: new AbortController().signal,
  giveUpAfterMs: 0,
  policy: { allowGroups: [], allowImages: [], hostRuntime: true, network: 'none', sharedFolders: [] },
  own: [],
  maxBytes: Number.POSITIVE_INFINITY,
  ...more,
})
const kept = () => join(folder, 'images', `${sha256}.sif`)

test('image by URL - is fetched once for many pilots that share a folder, and lies under its checksum', async () => {
  const gateOpener = Promise.withResolvers<void>()
  gate = gateOpener.promise
  const stores = [store(), store(), store()]
  const located = Promise.all(stores.flatMap((one) => [one.locate(image, transfer()), one.locate(image, transfer())]))
  while (asked.length === 0) await new Promise((done) => setTimeout(done, 5))
  gateOpener.resolve()
  expect(new Set(await located)).toEqual(new Set([kept()]))
  expect(asked).toEqual([
    `/files/fetch?${new URLSearchParams({ url: 'http://images.example/x.sif', checksum: `sha256:${sha256}` })}`,
  ])
  expect(readFileSync(kept(), 'utf8')).toBe(content)
  expect(readdirSync(join(folder, 'images'))).toEqual([`${sha256}.sif`])
})

test('image by URL - with other content than promised is damaged and not kept', async () => {
  answer = { status: 200, body: 'something else' }
  await expect(store().locate(image, transfer())).rejects.toMatchObject({ code: 'image.damaged' })
  expect(existsSync(kept())).toBe(false)
})

test.each([
  [404, 'image.missing'],
  [503, 'stage.inFailed'],
])('image by URL - status %i is %s', async (status, code) => {
  answer = { status, body: '' }
  await expect(store().locate(image, transfer())).rejects.toMatchObject({ code })
})

test('image by URL - one that names the same content at a bad address fails alone', async () => {
  const never = Promise.withResolvers<void>()
  gate = never.promise
  const bad = `http://silent.example/x.sif#sha256:${sha256}`
  const first = store().locate(bad, transfer())
  while (asked.length === 0) await new Promise((done) => setTimeout(done, 5))
  gate = Promise.resolve()
  const one = store()
  const ended = new AbortController()
  const second = one.locate(bad, transfer({ signal: ended.signal }))
  expect(await one.locate(image, transfer())).toBe(kept())
  expect(await second).toBe(kept())
  never.resolve()
  expect(await first).toBe(kept())
  expect(readdirSync(join(folder, 'images'))).toEqual([`${sha256}.sif`])
})

test('image by URL - when the task that fetches is ended, another that waits goes on', async () => {
  const never = Promise.withResolvers<void>()
  gate = never.promise
  const one = store()
  const ended = new AbortController()
  const first = one.locate(image, transfer({ signal: ended.signal }))
  const second = one.locate(image, transfer())
  while (asked.length === 0) await new Promise((done) => setTimeout(done, 5))
  gate = Promise.resolve()
  ended.abort()
  await expect(first).rejects.toMatchObject({ code: 'link.closed' })
  expect(await second).toBe(kept())
  never.resolve()
})

test('image by URL - a spoilt copy is removed when the runtime finds it damaged, a good one stays', async () => {
  const one = store()
  await one.locate(image, transfer())
  await one.distrust(kept())
  expect(existsSync(kept())).toBe(true)
  writeFileSync(kept(), 'spoilt')
  await one.distrust(kept())
  expect(existsSync(kept())).toBe(false)
  await one.distrust('/etc/passwd')
})

test('images - what nobody used for two weeks is removed', async () => {
  mkdirSync(join(folder, 'images'))
  const old = join(folder, 'images', 'old.sif')
  writeFileSync(old, '')
  writeFileSync(kept(), '')
  const longAgo = Date.now() / 1000 - 15 * 86_400
  utimesSync(old, longAgo, longAgo)
  await store().tidy()
  expect([existsSync(old), existsSync(kept())]).toEqual([false, true])
})

test.each([
  ['/images/x', '/images/x'],
  ['file:///images/x.sif', '/images/x.sif'],
  [`docker://r/x@sha256:${sha256}`, `docker://r/x@sha256:${sha256}`],
])('image - %s needs no fetching', async (name, path) => {
  expect(await store().locate(name, transfer({ files: () => ({ client, url: null }) }))).toBe(path)
})

test('image - a name without a checksum is refused', async () => {
  await expect(store().locate('https://h/x.sif', transfer())).rejects.toMatchObject({ code: 'campaign.invalid' })
})
