/** A relay whose journal is new asks which outputs are still to be named: what it does with the answers. */
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { Journal } from '../../edge-relay/journal.ts'
import { Names } from '../../edge-relay/names.ts'
import { Publications } from '../../edge-relay/publications.ts'
import type { AcceptedPage } from '../../shared/files/accepted.ts'
import { FileClient } from '../../shared/files/client.ts'
import { type FileService, fileHandler } from '../../shared/files/server.ts'
import { type Log, silentLog } from '../../shared/log.ts'
import { type ManualClock, manualClock } from '../manual-clock.ts'
import { until } from './relay-in-parts.ts'

const AGAIN_AFTER_MS = 10 * 60_000

let folder: string
let server: Server
/** By the place that is asked for. */
let pages: Record<string, AcceptedPage> | undefined
let asked: (string | null)[]
let clock: ManualClock
let warned: number
let one: { journal: Journal; publications: Publications; names: Names; client: FileClient } | undefined

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-names-'))
  clock = manualClock()
  asked = []
  warned = 0
  pages = {}
  const nothing = async () => null
  const service: FileService = {
    authorize: (wanted) => void asked.push(wanted.kind === 'accepted' ? wanted.from : wanted.kind),
    findBlob: nothing,
    findAttemptFile: nothing,
    putAttemptFile: () => Promise.reject(new Error('nobody puts')),
  }
  const current = () =>
    pages && { ...service, listAccepted: async (_: string, from: string | null) => pages![from ?? 'first']! }
  server = createServer((request, response) => fileHandler(current() ?? service, silentLog)(request, response))
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
})
afterEach(async () => {
  await stop()
  server.closeAllConnections()
  await new Promise((resolve) => server.close(resolve))
  rmSync(folder, { recursive: true, force: true })
})

function start() {
  const journal = Journal.open(join(folder, 'journal.sqlite'), silentLog, () => {})
  const publications = new Publications(journal, clock, silentLog, journal.read().pending)
  const client = new FileClient({ ca: null, token: 'site' })
  const centralUrl = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  const log = { ...silentLog, info() {}, warn: () => void warned++ } as unknown as Log
  const names = new Names({ journal, publications, client, centralUrl, clock, timeScale: 1, log })
  journal.onLoss = () => names.onLoss()
  names.start()
  one = { journal, publications, names, client }
  return one
}

async function stop() {
  await one?.names.stop()
  await one?.publications.stop()
  await one?.client.close()
  one?.journal.close()
  one = undefined
}

/** One accepted result, with its file or without. */
function accepted(index: number, isThere: boolean): AcceptedPage['results'][number] {
  const path = join(folder, `${index}.txt.attempt-1-2`)
  if (isThere) writeFileSync(path, 'whole')
  const outputs = [{ path: 'out.txt', url: pathToFileURL(path).href }]
  return { campaign: 'c1', step: 'a', index, fences: [1, 2], outputs }
}

const asleep = () => until('it waits for the second time', () => clock.sleeping === 1)

it('names - every page is asked for, what lies there is named, what does not is not waited for', async () => {
  pages = {
    first: { results: [accepted(0, true), accepted(1, false)], next: '500:/g' },
    '500:/g': { results: [accepted(2, true)], next: null },
  }
  const { publications } = start()
  await asleep()
  await until('all are named', () => publications.waiting === 0 && existsSync(join(folder, '2.txt')))
  expect(readdirSync(folder).filter((name) => name.includes('.txt'))).toEqual(['0.txt', '2.txt'])
  expect(asked).toEqual([null, '500:/g'])
})

it('names - it is asked twice, then not after a restart, and again when the journal has lost something', async () => {
  pages = { first: { results: [], next: null } }
  const { journal } = start()
  await asleep()
  await clock.advance(AGAIN_AFTER_MS)
  await until('both times are over', () => journal.hasAskedNames)
  expect(asked).toEqual([null, null])
  await stop()
  const again = start()
  await clock.settle()
  expect(again.journal.hasAskedNames).toBe(true)
  expect(asked).toHaveLength(2)
  again.journal.noteLoss()
  await until('it is asked', () => asked.length === 3)
  await stop()
  start()
  await until('it is asked after a restart in between', () => asked.length === 4)
})

it('names - a centre that does not know the question is asked once', async () => {
  pages = undefined
  const { journal } = start()
  await until('it is said', () => warned === 1)
  await clock.advance(3 * AGAIN_AFTER_MS)
  expect(clock.sleeping).toBe(0)
  expect(asked).toHaveLength(1)
  expect(warned).toBe(1)
  expect(journal.hasAskedNames).toBe(false)
})
