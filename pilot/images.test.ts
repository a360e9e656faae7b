import { createHash } from 'node:crypto'
import {
  existsSync,
  lutimesSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { pino } from 'pino'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { type Clock, systemClock } from '../shared/clock.ts'
import { FileClient } from '../shared/files/client.ts'
import { silentLog } from '../shared/log.ts'
import { fastClock } from '../test/fast-clock.ts'
import { manualClock } from '../test/manual-clock.ts'
import type { Transfer } from './drivers.ts'
import { ImageStore } from './images.ts'

const content = 'an image, as far as this is concerned'
const sha256 = createHash('sha256').update(content).digest('hex')
const image = `http://images.example/x.sif#sha256:${sha256}`

let folder: string
let server: Server
let client: FileClient
let asked: string[]
/** With `sent`, only so many bytes come. */
let answer: { status: number; body: string; sent?: number }
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
    const from = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? '')?.[1] ?? 0)
    await gate
    const body = answer.body.slice(from)
    const range = from > 0 ? { 'content-range': `bytes ${from}-${answer.body.length - 1}/${answer.body.length}` } : {}
    response.writeHead(from > 0 ? 206 : answer.status, { ...range, 'content-length': body.length })
    if (answer.sent === undefined) response.end(body)
    else response.write(body.slice(0, answer.sent))
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
})
afterEach(async () => {
  await client.close()
  server.closeAllConnections()
  await new Promise((resolve) => server.close(resolve))
  rmSync(folder, { recursive: true, force: true })
})

const store = (clock: Clock = systemClock) => new ImageStore({ folder: join(folder, 'images'), clock, log: silentLog })
/** What the files of a fetch begin with. */
const begun = () =>
  join(
    folder,
    'images',
    `${sha256}.${createHash('sha256').update('http://images.example/x.sif').digest('hex').slice(0, 16)}`,
  )
const transfer = (more: Partial<Transfer> = {}): Transfer => ({
  files: () => ({ client, url: `http://127.0.0.1:${(server.address() as AddressInfo).port}` }),
  capability: null,
  signal: new AbortController().signal,
  giveUpAfterMs: 60_000,
  policy: { allowGroups: [], allowImages: [], hostRuntime: true, network: 'none', sharedFolders: [] },
  own: [],
  maxBytes: Number.POSITIVE_INFINITY,
  ...more,
})
const kept = () => join(folder, 'images', `${sha256}.sif`)

async function until(isSo: () => boolean): Promise<void> {
  while (!isSo()) await new Promise((done) => setTimeout(done, 5))
}

test('image by URL - is fetched once for many pilots that share a folder, and lies under its checksum', async () => {
  const gateOpener = Promise.withResolvers<void>()
  gate = gateOpener.promise
  const stores = [store(), store(), store()]
  const located = Promise.all(stores.flatMap((one) => [one.locate(image, transfer()), one.locate(image, transfer())]))
  await until(() => asked.length > 0)
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
  await expect(store().locate(image, transfer({ giveUpAfterMs: 0 }))).rejects.toMatchObject({ code })
})

test('image by URL - one that names the same content at a bad address fails alone', async () => {
  const never = Promise.withResolvers<void>()
  gate = never.promise
  const bad = `http://silent.example/x.sif#sha256:${sha256}`
  const first = store().locate(bad, transfer())
  await until(() => asked.length > 0)
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
  await until(() => asked.length > 0)
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

test('image by URL - a task that waits for another’s fetch hears its own end at once', async () => {
  const never = Promise.withResolvers<void>()
  gate = never.promise
  const one = store()
  const first = one.locate(image, transfer())
  const ending = new AbortController()
  const second = one.locate(image, transfer({ signal: ending.signal }))
  ending.abort()
  await expect(second).rejects.toMatchObject({ code: 'link.closed' })
  const { signal } = ending
  await expect(one.locate(image, transfer({ signal }))).rejects.toMatchObject({ code: 'link.closed' })
  never.resolve()
  expect(await first).toBe(kept())
})

test('image by URL - who waits for another pilot that gets nothing gives up in its own time', async () => {
  const never = Promise.withResolvers<void>()
  gate = never.promise
  const first = store().locate(image, transfer())
  await until(() => asked.length > 0)
  const second = store().locate(image, transfer({ giveUpAfterMs: 100 }))
  await expect(second).rejects.toMatchObject({
    code: 'stage.inFailed',
    message: expect.stringContaining('another pilot'),
  })
  never.resolve()
  expect(await first).toBe(kept())
})

/** One who waits for 20 s, by a clock that stands. */
function waitPatiently() {
  mkdirSync(join(folder, 'images'))
  const clock = manualClock()
  const lock = `${begun()}.fetching`
  writeFileSync(lock, 'other')
  const waiting = store(clock).locate(image, transfer({ giveUpAfterMs: 20_000 }))
  const ended = vi.fn()
  waiting.catch(ended)
  const isAsleep = () => until(() => clock.sleeping > 0)
  /** Whose turn it is lives, has so much, and time goes on. */
  const goOn = async (bytes: number, ms: number, owner = 'other') => {
    await isAsleep()
    writeFileSync(lock, owner)
    utimesSync(lock, clock.wallMs() / 1000, clock.wallMs() / 1000)
    writeFileSync(`${begun()}.${owner}.part`, 'x'.repeat(bytes))
    await clock.advance(ms)
  }
  return { waiting, ended, goOn, isAsleep }
}

test('image by URL - who waits goes on while something arrives, and no longer', async () => {
  const { waiting, ended, goOn, isAsleep } = waitPatiently()
  await goOn(0, 19_000)
  await goOn(1, 19_000)
  await goOn(2, 19_000)
  await goOn(2, 19_000)
  await isAsleep()
  expect(ended).not.toHaveBeenCalled()
  await goOn(2, 19_000)
  await expect(waiting).rejects.toMatchObject({ code: 'stage.inFailed' })
  expect(asked).toEqual([])
})

test('image by URL - who waits goes on while something arrives at another that began anew', async () => {
  const { waiting, ended, goOn, isAsleep } = waitPatiently()
  await goOn(100, 19_000)
  await goOn(0, 4000, 'next')
  await goOn(1, 15_000, 'next')
  for (const bytes of [2, 3]) await goOn(bytes, 19_000, 'next')
  await isAsleep()
  expect(ended).not.toHaveBeenCalled()
  await goOn(3, 20_500, 'next')
  await expect(waiting).rejects.toMatchObject({ code: 'stage.inFailed' })
})

test('image by URL - a turn that changes hands while nothing arrives gives nobody more time', async () => {
  const { waiting, ended, goOn, isAsleep } = waitPatiently()
  await goOn(5, 19_000)
  await goOn(5, 4000, 'second')
  await isAsleep()
  expect(ended).not.toHaveBeenCalled()
  await goOn(4, 16_500, 'third')
  await expect(waiting).rejects.toMatchObject({ code: 'stage.inFailed' })
})

test('image by URL - what a dead pilot began is taken over by one of those who wait, and nothing of it stays', async () => {
  mkdirSync(join(folder, 'images'))
  writeFileSync(`${begun()}.fetching`, 'dead')
  writeFileSync(`${begun()}.dead.part`, 'half of something')
  const forEver = transfer({ giveUpAfterMs: Number.POSITIVE_INFINITY })
  // Who fetches shows itself twice a second, and is dead to the others after three.
  const waiting = [1, 2, 3].map(() => store(fastClock(10)).locate(image, forEver))
  expect(new Set(await Promise.all(waiting))).toEqual(new Set([kept()]))
  expect(readFileSync(kept(), 'utf8')).toBe(content)
  expect(readdirSync(join(folder, 'images'))).toEqual([`${sha256}.sif`])
})

test('image by URL - who wakes after its turn was taken over leaves the other’s alone', async () => {
  const opener = Promise.withResolvers<void>()
  gate = opener.promise
  const suspended = store().locate(image, transfer())
  await until(() => asked.length > 0)
  writeFileSync(`${begun()}.fetching`, 'other')
  opener.resolve()
  expect(await suspended).toBe(kept())
  expect(readFileSync(`${begun()}.fetching`, 'utf8')).toBe('other')
})

test('image by URL - a fetch that fails is none where another has the image there', async () => {
  const opener = Promise.withResolvers<void>()
  gate = opener.promise
  const failing = store().locate(image, transfer())
  await until(() => asked.length > 0)
  writeFileSync(kept(), content)
  answer = { status: 404, body: '' }
  opener.resolve()
  expect(await failing).toBe(kept())
})

test('image by URL - who fails after its turn was taken over waits for who took it', async () => {
  const opener = Promise.withResolvers<void>()
  gate = opener.promise
  const said: string[] = []
  const log = pino({}, { write: (line: string) => said.push(line) })
  const failing = new ImageStore({ folder: join(folder, 'images'), clock: systemClock, log }).locate(image, transfer())
  await until(() => asked.length > 0)
  writeFileSync(`${begun()}.fetching`, 'other')
  answer = { status: 404, body: '' }
  opener.resolve()
  await until(() => said.some((line) => line.includes('image.fetchOvertaken')))
  writeFileSync(kept(), content)
  expect(await failing).toBe(kept())
  expect(asked).toHaveLength(1)
})

test('image by URL - what a fetch that broke had so far is left to the next', async () => {
  answer = { status: 200, body: content, sent: 10 }
  const breaking = store().locate(image, transfer({ giveUpAfterMs: 0 }))
  const parts = () =>
    readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter((name) => name.endsWith('.part'))
  await until(() => parts().some((name) => statSync(join(folder, name)).size === 10))
  server.closeAllConnections()
  await expect(breaking).rejects.toMatchObject({ code: 'stage.inFailed' })
  expect(readFileSync(`${begun()}.part`, 'utf8')).toBe(content.slice(0, 10))
  // What it has already it does not ask for again.
  answer = { status: 200, body: `0123456789${content.slice(10)}` }
  expect(await store().locate(image, transfer())).toBe(kept())
  expect(readFileSync(kept(), 'utf8')).toBe(content)
  expect(readdirSync(join(folder, 'images'))).toEqual([`${sha256}.sif`])
})

test("images - of what pilots made, what nobody used for two weeks is removed; a site's own files and folders stay", async () => {
  const images = join(folder, 'images')
  const ours = [
    `${'a'.repeat(64)}.sif`,
    `${basename(begun())}.part`,
    `${basename(begun())}.fetching`,
    `digest-${'b'.repeat(32)}`,
  ]
  const theirs = [
    'old.sif',
    'lammps',
    `${'a'.repeat(64)}`,
    `${'a'.repeat(64)}.sif.keep`,
    'digest-of-images',
    `${'c'.repeat(64)}.sif`,
  ]
  const link = `${'d'.repeat(64)}.sif`
  mkdirSync(join(images, 'lammps'), { recursive: true })
  mkdirSync(join(images, `${'c'.repeat(64)}.sif`))
  for (const name of [...ours, ...theirs]) {
    const path = join(images, name)
    if (!existsSync(path)) writeFileSync(path, '')
    const longAgo = Date.now() / 1000 - 15 * 86_400
    utimesSync(path, longAgo, longAgo)
  }
  symlinkSync(join(images, 'old.sif'), join(images, link))
  lutimesSync(join(images, link), 0, 0)
  writeFileSync(kept(), '')
  await store().tidy()
  expect(readdirSync(images).sort()).toEqual([...theirs, link, `${sha256}.sif`].sort())
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
