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

export interface Product {
  central: Daemon
  relay: Daemon
  /** The wide-area link, in two halves. */
  links: { api: RunningLink; nats: RunningLink }
  /** The `indraft` command as the administrator, outside. Throws when it fails. */
  indraft(...words: string[]): Promise<string>
  tryIndraft(...words: string[]): Promise<Outcome>
  /** Starts the relay (again), on the state that it has. */
  startRelay(): Promise<Daemon>
}

/** Paths as the site's users see them. */
export const paths = { relay: `${inside.home}/relay`, pilotCredential: `${inside.home}/relay/pilot.json` } as const

/** @throws Error with the log's end of what did not start */
export async function startProduct(centre: Centre, timeScale = 1): Promise<Product> {
  const program = `${inside.checkout}/test/lab/outside.ts`
  const ports = [String(publicPorts.api), String(publicPorts.nats), String(timeScale)]
  const central = centre.spawn('outside', 'central', ['node', program, home, addresses.outside, ...ports])
  const ready = await central.waitFor(/\{"msg":"outside.ready".*\}/, 60_000)
  const at = JSON.parse(ready[0]) as { api: number; nats: number }
  const link = (port: number, target: number) =>
    startLink(centre, 'outside', `${addresses.outside}:${port}`, `127.0.0.1:${target}`)
  const links = { api: await link(publicPorts.api, at.api), nats: await link(publicPorts.nats, at.nats) }

  const tryIndraft = (...words: string[]) =>
    centre.run('outside', ['indraft', ...words], { env: { INDRAFT_HOME: home }, timeoutMs: 120_000 })
  const indraft = (...words: string[]) =>
    centre.check('outside', ['indraft', ...words], { env: { INDRAFT_HOME: home }, timeoutMs: 120_000 })

  const { joinToken } = JSON.parse(await indraft('site', 'add', site, '--json')) as { joinToken: string }
  const ca = await centre.check('outside', ['cat', `${home}/tls/ca.pem`])
  await centre.write('edge', '/etc/indraft-ca.pem', `${ca}\n`)
  const url = `https://${addresses.outside}:${publicPorts.api}`
  const join = ['indraft', 'relay', 'join', '--url', url, '--token', joinToken, '--ca', '/etc/indraft-ca.pem']
  await centre.check('edge', [...join, '--state', paths.relay], { user: 'alice' })
  const startRelay = async () => {
    const settings = ['--host', '0.0.0.0', '--advertise', addresses.edgeLan, '--time-scale', String(timeScale)]
    const credential = ['--state', paths.relay, '--credential', `${paths.relay}/relay.json`]
    const argv = ['indraft', 'relay', 'run', ...credential, ...settings]
    const relay = centre.spawn('edge', 'relay', argv, { user: 'alice' })
    await relay.waitFor(/relay\.ready/, 60_000)
    return relay
  }
  return { central, relay: await startRelay(), links, indraft, tryIndraft, startRelay }
}
