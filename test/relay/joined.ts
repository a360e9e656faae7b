/** Relays that joined a real centre: the credential, a process for each test, and pilots that a test plays at them. */
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, afterEach, beforeAll, beforeEach } from 'vitest'
import { readPilotCredential, relayCredentialSchema, writeCredential } from '../../shared/credentials.ts'
import type { Link } from '../../shared/link.ts'
import { connectNats, natsLink } from '../../shared/link-nats.ts'
import { type CentralLab, startCentralLab } from '../central/central-lab.ts'
import { SimulatedHolder } from '../conformance/simulated-holder.ts'
import { type RelayProcess, type SmallDisk, smallDisk, spawnRelay } from './relay-process.ts'

/** Registers the site where it is new, and writes `relay.json` into a relay's folder. */
export async function joinSite(lab: CentralLab, site: { name: string; outageMs?: number }, state: string) {
  const { joinToken } = await lab.admin.call('addSite', { body: site })
  const { credential } = await lab.as(null).call('joinSite', { body: { token: joinToken } })
  mkdirSync(state, { recursive: true })
  writeCredential(join(state, 'relay.json'), relayCredentialSchema.parse(credential))
}

/** A connection to a relay as its pilots have it. @param path of pilot.json; the caller closes the link */
export async function pilotLink(path: string, name: string): Promise<Link> {
  const { nats, site } = readPilotCredential(path)
  const { url, ca, inboxPrefix } = nats
  const connection = await connectNats({ url, ca: ca!, name, user: nats.user!, password: nats.password!, inboxPrefix })
  return natsLink(connection, site)
}

export interface JoinedRelay {
  lab: CentralLab
  /** Of this test alone. */
  site: string
  folder: string
  relay: RelayProcess
  /** What every start is given. */
  settings: string[]
  disk: SmallDisk | null
  /** A path in the relay's folder, as this process reaches it. */
  state(inside: string): string
  /** Starts the relay, once more perhaps. */
  start(...more: string[]): RelayProcess
  /** A pilot that the test plays; gone with the test. */
  pilot(name: string): Promise<SimulatedHolder>
  /** Runs when the test is over, the last first. */
  onEnd(end: () => unknown): void
}

export interface JoinedOptions {
  timeScale: number
  more?: string[]
  /** The relay's folder is a file system of this size; needs root. */
  disk?: string
}

/** For a whole file: one centre, and for each test a new site with a relay that is ready. */
export function joinedRelay(name: string, { timeScale, more = [], disk: size }: JoinedOptions): JoinedRelay {
  const ends: (() => unknown)[] = []
  let sites = 0
  const bench = {
    state: (inside) => bench.disk?.path(inside) ?? join(bench.folder, 'state', inside),
    start(...others) {
      bench.relay = spawnRelay([...bench.settings, ...others], bench.disk?.enter)
      return bench.relay
    },
    async pilot(pilot) {
      const link = await pilotLink(bench.state('pilot.json'), pilot)
      ends.push(() => link.close())
      const made = new SimulatedHolder(link, 'pilot', pilot)
      await made.hello()
      return made
    },
    onEnd: (end) => void ends.push(end),
    disk: null,
  } as JoinedRelay
  beforeAll(async () => {
    bench.lab = await startCentralLab()
  })
  afterAll(() => bench.lab?.stop())
  beforeEach(async () => {
    bench.folder = mkdtempSync(join(tmpdir(), 'indraft-joined-'))
    const state = join(bench.folder, 'state')
    bench.settings = ['--state', state, '--time-scale', String(timeScale), '--failpoints', bench.folder, ...more]
    bench.site = `${name}-${++sites}`
    bench.disk = size === undefined ? null : await smallDisk(state, size)
    await joinSite(bench.lab, { name: bench.site }, bench.state(''))
    await bench.start().said('relay.ready')
  })
  afterEach(async () => {
    for (const end of ends.splice(0).reverse()) await end()
    bench.relay?.kill('SIGKILL')
    await bench.relay?.exited
    bench.disk?.close()
    rmSync(bench.folder, { recursive: true, force: true })
  })
  return bench
}
