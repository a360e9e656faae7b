/**
 * Turns granted leases into the messages that carry them: the signed bundle, and the unsigned envelope around it. The
 * same lease always gives the same work, so a repeated reply may be built anew.
 */
import type { Clock } from '../../shared/clock.ts'
import type { Grant, LeasePart } from '../../shared/protocol/messages.ts'
import type { Signed } from '../../shared/protocol/work.ts'
import type { Signer } from '../../shared/signing.ts'
import type { StoreOptions } from './options.ts'
import type { Plans, StoredStep } from './plans.ts'
import { mapOf, type Scripts } from './scripts.ts'

/** Signed work is valid this long: far beyond any lease, so that clocks need not agree. */
const WORK_VALID_MS = 14 * 24 * 3600_000
/**
 * So long after the last task of a bundle may have ended its files can still be handed in. A relay keeps results through
 * an outage and stores their outputs when its link is back, and a result whose outputs are refused is lost: this has to
 * be longer than anybody leaves a site cut off. It costs nothing, because a capability opens no more than its lease.
 */
export const FILES_OPEN_MS = 30 * 24 * 3600_000
/** A grant without rows, manifests, ranges, nodes and tries, packed; generous. */
const GRANT_BYTES = 900

/** As the grant script describes a lease. */
export interface GrantedLease {
  bundle: string
  fence: string
  campaign: string
  step: string
  class: string
  tasks: string
  /** Separated by commas. */
  nodes: string
  tries: Record<string, number> | number[]
}

export interface EnvelopeParts {
  scripts: Scripts
  plans: Plans
  signer: Signer
  clock: Clock
  capabilityFor: StoreOptions['capabilityFor']
}

export class Envelopes {
  readonly #parts: EnvelopeParts
  readonly #manifests = new Map<string, Record<string, string>>()

  constructor(parts: EnvelopeParts) {
    this.#parts = parts
  }

  /** At most what a lease of a step adds to a reply, and each of its tasks by its row; the script adds what else it carries. */
  static bytesOf(step: Pick<StoredStep, 'rowBytesMax' | 'template'>): { grantBytes: number; rowBytes: number } {
    return { grantBytes: GRANT_BYTES + 100 * step.template.inputs.length, rowBytes: step.rowBytesMax }
  }

  /** With its template where the holder does not have it; null where its campaign is not known. */
  async grant(
    site: string,
    lease: GrantedLease,
    leaseMs: number,
    knows: readonly string[],
  ): Promise<{ grant: Grant; template: Signed | null } | null> {
    const { plans, signer, clock, capabilityFor } = this.#parts
    const known = await plans.step(lease.campaign, lease.step)
    if (!known) return null
    const { base, step } = known
    const expiresAtMs = clock.wallMs() + WORK_VALID_MS
    const part = leasePart(lease)
    const { redis } = this.#parts.scripts
    const walls = await redis.hmget(`${base}:step:${lease.campaign}:${lease.step}`, 'wallMs', 'wallCount')
    const wallCount = Number(walls[1] ?? 0)
    const grant: Grant = {
      bundle: signer.bundle({
        kind: 'bundle',
        bundle: lease.bundle,
        campaign: lease.campaign,
        step: lease.step,
        template: step.templateDigest,
        tasks: lease.tasks,
        rows: await plans.rows(step, lease.tasks),
        manifests: await this.#manifestsOf(base, lease.campaign, step),
        site,
        expiresAtMs,
      }),
      lease: part,
      template: step.template16,
      leaseMs,
      tries: mapOf(lease.tries),
      avoidNodes: lease.nodes === '' ? [] : lease.nodes.split(',').slice(0, 64),
      estimateMs: wallCount > 0 ? Math.round(Number(walls[0] ?? 0) / wallCount) : null,
      capability: capabilityFor?.(site, part, expiresAtMs + step.template.needs.walltimeMs + FILES_OPEN_MS) ?? null,
    }
    return { grant, template: knows.includes(step.template16) ? null : await plans.template(step) }
  }

  /** Written when the step was released, before anything of it could be granted; they never change. */
  async #manifestsOf(base: string, campaign: string, step: StoredStep): Promise<Record<string, string>> {
    if (!step.template.inputs.some((input) => input.from !== null)) return {}
    const name = `${campaign}/${step.name}`
    const cached = this.#manifests.get(name)
    if (cached) return cached
    const text = await this.#parts.scripts.redis.hget(`${base}:step:${campaign}:${step.name}`, 'manifests')
    if (text === null) return {}
    const manifests = JSON.parse(text) as Record<string, string>
    this.#manifests.set(name, manifests)
    if (this.#manifests.size > 1000) this.#manifests.delete(this.#manifests.keys().next().value!)
    return manifests
  }
}

export function leasePart({ bundle, campaign, step, fence, tasks }: GrantedLease): LeasePart {
  return { bundle, campaign, step, fences: [Number(fence)], tasks }
}
