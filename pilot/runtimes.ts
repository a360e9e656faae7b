/**
 * The runtimes of this node, tried for real: the host's own, and the container's (container-probe.ts). Part of the node
 * test, and of `indraft-pilot doctor`.
 *
 * What always holds: where the site wants payloads without network to have one of their own (`ownNetwork: always`), a
 * runtime that cannot give it is not used at all; a node without any is bad, rather than one where every task fails.
 */
import { access, constants } from 'node:fs/promises'
import { isAbsolute, join } from 'node:path'
import type { Log } from '../shared/log.ts'
import type { BatchEnvironment, PilotConfig } from './config.ts'
import { hostRuntime, type Runtime } from './container.ts'
import { probeContainer } from './container-probe.ts'
import type { Gpus } from './gpus.ts'
import type { Check } from './node.ts'
import { makeOffline, type Offline } from './offline.ts'

export interface RuntimesSought {
  config: PilotConfig
  batch: BatchEnvironment
  log: Log
  /** Container programs, by path; see containerBinaries. */
  candidates: readonly string[]
  /** The pilot's own, for the container probe. */
  folder: string
  /** What no bind may show to payloads, and what none may let them write; as in Guarded. */
  own: readonly string[]
  kept: readonly string[]
  /** As found on this node. */
  gpus: Gpus | null
  /** The place for host payloads without network is gone: the node is no good any more. */
  onLost?: (detail: string) => void
}

export interface RuntimesFound {
  runtimes: Runtime[]
  /** To be closed with the pilot. */
  offline: Offline | null
  /** Why host payloads without network have the node's; null where they have none. */
  whyShared: string | null
  /** What is bad; empty where a runtime works. */
  checks: Check[]
}

export async function findRuntimes(sought: RuntimesSought): Promise<RuntimesFound> {
  const { config, batch, log, onLost } = sought
  const file = sought.gpus?.files?.example ?? null
  const gpus = sought.gpus && file !== null ? { vendor: sought.gpus.vendor, file } : null
  const [host, container] = await Promise.all([
    findHost(config, batch, log, onLost),
    probeContainer({
      binaries: sought.candidates,
      folder: sought.folder,
      probeImage: config.probeImage,
      binds: config.binds,
      own: sought.own,
      kept: sought.kept,
      registries: config.network === 'outgoing',
      gpus,
      env: { PATH: batch.path, ...batch.container },
      log,
    }),
  ])
  const found = [...(host ? [host.runtime] : []), ...(container ? [container] : [])]
  const runtimes = config.ownNetwork === 'always' ? found.filter(isSealed) : found
  for (const { name } of found.filter((one) => !runtimes.includes(one)))
    log.error({ runtime: name }, 'runtime.notSealed')
  const detail = found.length > 0 ? 'none gives payloads a network of their own' : 'neither host nor container'
  return {
    runtimes,
    offline: host?.offline ?? null,
    whyShared: host?.whyShared ?? null,
    checks: runtimes.length > 0 ? [] : [{ what: 'a runtime works', ok: false, detail }],
  }
}

function isSealed(runtime: Runtime): boolean {
  return runtime.sealing({ network: 'none' }).network === 'own'
}

async function findHost(config: PilotConfig, batch: BatchEnvironment, log: Log, onLost?: (detail: string) => void) {
  if (!config.hostRuntime) return null
  if (config.ownNetwork === 'never') return { runtime: hostRuntime(batch.path), offline: null, whyShared: 'not wanted' }
  const made = await makeOffline(batch.path, () => {
    log.error({}, 'offline.lost')
    onLost?.('the network namespace for host payloads is gone')
  })
  const offline = typeof made === 'string' ? null : made
  const whyShared = typeof made === 'string' ? made : null
  log.info({ network: offline ? 'own' : `shared: ${whyShared}` }, 'host.found')
  return { runtime: hostRuntime(batch.path, offline), offline, whyShared }
}

/** Container programs to try, by path. */
export async function containerBinaries(config: PilotConfig, batch: BatchEnvironment): Promise<string[]> {
  if (config.containerRuntime === 'none') return []
  if (config.containerRuntime !== null) return [config.containerRuntime]
  const found: string[] = []
  for (const program of ['apptainer', 'singularity']) {
    for (const folder of batch.path.split(':').filter(isAbsolute)) {
      const path = join(folder, program)
      const isThere = await access(path, constants.X_OK).then(
        () => true,
        () => false,
      )
      if (isThere) {
        found.push(path)
        break
      }
    }
  }
  return found
}
