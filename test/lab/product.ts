/**
 * Indraft in the lab, each program where it is meant to run: central outside, the relay on the edge as alice, pilots as
 * Slurm jobs of alice; between central and relay one link for control and one for files, which a test may cut.
 */

import { addresses, type Centre, inside, type Outcome } from './centre.ts'
import type { Daemon } from './daemon.ts'
import { type RunningLink, startLink } from './wan-proxy.ts'

export const site = 'LAB'
const publicPorts = { api: 8420, nats: 4222 } as const
const home = '/var/lib/indraft'

/** The centre and what leads to it; no site has joined. */
export interface Outside {
  central: Daemon
  /** The wide-area link, in two halves. */
  links: { api: RunningLink; nats: RunningLink }
  /** As the world knows it. */
  url: string
  /** PEM of the authority that signed central's certificate. */
  ca: string
  /** The `indraft` command as the administrator, outside. Throws when it fails. */
  indraft(...words: string[]): Promise<string>
  tryIndraft(...words: string[]): Promise<Outcome>
}

export interface Product extends Outside {
  relay: Daemon
  /** Starts the relay (again), on the state that it has. */
  startRelay(): Promise<Daemon>
}

/** What sites run, as bundles: with source files the start of a command is twice the work. */
export const programs = {
  indraft: ['node', `${inside.checkout}/dist/indraft.mjs`],
  pilot: ['node', `${inside.checkout}/dist/indraft-pilot.mjs`],
} as const

/** Paths as the site's users see them. */
export const paths = {
  /** On the edge's own disk, as its journal wants. */
  relay: '/var/tmp/indraft-relay',
  /** On the shared file system, where the nodes see it; for alice alone. */
  pilotCredential: `${inside.home}/.indraft/pilot.json`,
} as const

/** @throws Error with the log's end of what did not start */
export async function startOutside(centre: Centre, timeScale = 1): Promise<Outside> {
  const program = `${inside.checkout}/test/lab/outside.ts`
  const ports = [String(publicPorts.api), String(publicPorts.nats), String(timeScale)]
  const central = centre.spawn('outside', 'central', ['node', program, home, addresses.outside, ...ports])
  const ready = await central.waitFor(/\{"msg":"outside.ready".*\}/)
  const at = JSON.parse(ready[0]) as { api: number; nats: number }
  const link = (port: number, target: number) =>
    startLink(centre, 'outside', `${addresses.outside}:${port}`, `127.0.0.1:${target}`)
  const links = { api: await link(publicPorts.api, at.api), nats: await link(publicPorts.nats, at.nats) }

  const tryIndraft = (...words: string[]) =>
    centre.run('outside', [...programs.indraft, ...words], { env: { INDRAFT_HOME: home } })
  const indraft = (...words: string[]) =>
    centre.check('outside', [...programs.indraft, ...words], { env: { INDRAFT_HOME: home } })

  const ca = await centre.check('outside', ['cat', `${home}/tls/ca.pem`])
  return { central, links, url: `https://${addresses.outside}:${publicPorts.api}`, ca, indraft, tryIndraft }
}

/** @throws Error with the log's end of what did not start */
export async function startProduct(centre: Centre, timeScale = 1): Promise<Product> {
  const outside = await startOutside(centre, timeScale)
  const { joinToken } = JSON.parse(await outside.indraft('site', 'add', site, '--json')) as { joinToken: string }
  await centre.write('edge', '/etc/indraft-ca.pem', `${outside.ca}\n`)
  const join = [
    ...programs.indraft,
    'relay',
    'join',
    '--url',
    outside.url,
    '--token',
    joinToken,
    '--ca',
    '/etc/indraft-ca.pem',
  ]
  await centre.check('edge', [...join, '--state', paths.relay], { user: 'alice' })
  const startRelay = async () => {
    // Towards the nodes only: nothing of it listens where the world could see it.
    const outside = ['--fetch-from', `http://${addresses.outside}:8080/`]
    const settings = ['--host', addresses.edgeLan, '--time-scale', String(timeScale), ...outside]
    const credential = ['--state', paths.relay, '--credential', `${paths.relay}/relay.json`]
    const argv = [...programs.indraft, 'relay', 'run', ...credential, ...settings]
    const relay = centre.spawn('edge', 'relay', argv, { user: 'alice' })
    await relay.waitFor(/relay\.ready/)
    const copy = ['install', '-D', '-m', '600', `${paths.relay}/pilot.json`, paths.pilotCredential]
    await centre.check('edge', copy, { user: 'alice' })
    return relay
  }
  return { ...outside, relay: await startRelay(), startRelay }
}
