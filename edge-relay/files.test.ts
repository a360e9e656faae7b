/** The relay's file server with its real disk, outbox and cache; how much is free the test says. */
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { request } from 'node:https'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { systemClock } from '../shared/clock.ts'
import { AttemptFiles } from '../shared/files/attempt-files.ts'
import { makeCapability } from '../shared/files/capability.ts'
import { checksumFile } from '../shared/files/checksum.ts'
import { FileClient, fileAddress } from '../shared/files/client.ts'
import { silentLog } from '../shared/log.ts'
import { issueCertificate, makeAuthority } from '../shared/tls.ts'
import { Cache } from './cache.ts'
import { Disk } from './disk.ts'
import { type RelayFiles, serveFiles } from './files.ts'
import { Outside } from './outside.ts'

const TOKEN = 'token'
const KEY = Buffer.alloc(32, 7)
const CAPABILITY = makeCapability(KEY, {
  campaign: 'c1',
  step: 'sim',
  fences: [1],
  tasks: '0-9',
  expiresAtMs: Date.now() + 3_600_000,
})

let folder: string
let ca: string
let server: RelayFiles
/** Pilots'. */
let client: FileClient
/** Resolved with the first claim. */
let claimed: PromiseWithResolvers<void>
let closers: (() => Promise<unknown>)[] = []

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-relay-files-'))
  claimed = Promise.withResolvers()
  const authority = await makeAuthority(join(folder, 'tls'))
  ca = authority.ca
  const disk = new Disk({
    folder,
    reserveBytes: 1000,
    isJournalFull: () => false,
    makeRoom: async () => {},
    spareBytes: () => 0,
    freeBytes: async () => 10_000,
    log: silentLog,
  })
  await disk.look()
  const outside = new Outside({ fetchFrom: [], fetchTimeMs: 1000, clock: systemClock, log: silentLog })
  const toCentral = new FileClient({ ca: null, token: null })
  server = await serveFiles({
    outbox: new AttemptFiles(join(folder, 'outbox')),
    cache: await Cache.open(join(folder, 'cache'), 1_000_000, silentLog),
    client: toCentral,
    centralUrl: 'https://127.0.0.1:1',
    capabilityOf: () => null,
    outside,
    token: TOKEN,
    capabilityKey: KEY,
    clock: systemClock,
    log: silentLog,
    fileLimitBytes: Number.POSITIVE_INFINITY,
    tls: await issueCertificate(authority, { commonName: 'relay', hosts: ['127.0.0.1'] }),
    host: '127.0.0.1',
    port: 0,
    room: {
      claim: async (bytes) => {
        const claim = await disk.claim(bytes)
        claimed.resolve()
        return claim
      },
    },
    silenceMs: 1000,
  })
  client = new FileClient({ ca, token: TOKEN })
  closers = [() => client.close(), () => server.close(), () => toCentral.close(), async () => outside.close()]
})
afterEach(async () => {
  for (const close of closers.splice(0)) await close()
  rmSync(folder, { recursive: true, force: true })
})

const addressOf = (name: string) => `https://127.0.0.1:${server.port}${fileAddress.attempt(`c1/sim/1/1/${name}`)}`

/** Sends the beginning of a file, and then nothing more. @returns when the relay ends it */
function beginning(name: string, promisedBytes: number): Promise<unknown> {
  const sent = request(addressOf(name), {
    method: 'PUT',
    ca,
    headers: {
      authorization: `Bearer ${TOKEN}`,
      'indraft-capability': CAPABILITY,
      'indraft-checksum': `sha256:${'0'.repeat(64)}`,
      'content-length': promisedBytes,
    },
  })
  const ended = new Promise((resolve) => sent.once('error', resolve))
  sent.write(Buffer.alloc(100))
  return ended
}

it('relay files - what a sender claimed who died in the middle is given to others, and its beginning goes', async () => {
  const cut = beginning('large', 8000)
  await claimed.promise
  const source = join(folder, 'source')
  writeFileSync(source, Buffer.alloc(5000))
  // Refused while the other one's claim stands, and asked again, as pilots do.
  const sent = await client.putFile(addressOf('small'), source, await checksumFile(source), {
    capability: CAPABILITY,
    giveUpAfterMs: 30_000,
  })
  expect(sent.sizeBytes).toBe(5000)
  await cut
  expect(readdirSync(join(folder, 'outbox/incoming'))).toEqual([])
})
