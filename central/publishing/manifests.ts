/**
 * Manifests: for a step with inputs `from` another, which attempt's outputs to fetch for each of its tasks. Written as
 * blobs when the step is released; winners never change, so the same step always gives the same manifest.
 */

import type { Log } from '../../shared/log.ts'
import { pack } from '../../shared/protocol/codec.ts'
import type { Manifest } from '../../shared/protocol/work.ts'
import type { BlobStore } from '../blobs.ts'
import type { Plans, StoredStep } from '../leases/plans.ts'
import { isOwn, type Results } from '../leases/results.ts'

const PART = 4096

export class Manifests {
  readonly #plans: Plans
  readonly #results: Results
  readonly #blobs: BlobStore
  readonly #log: Log

  constructor(plans: Plans, results: Results, blobs: BlobStore, log: Log) {
    this.#plans = plans
    this.#results = results
    this.#blobs = blobs
    this.#log = log
  }

  /** Digest by the input's position, `"0"`, `"1"`, ... */
  async write(campaign: string, step: StoredStep): Promise<Record<string, string>> {
    const manifests: Record<string, string> = {}
    for (const [position, input] of step.template.inputs.entries()) {
      if (input.from === null) continue
      const from = await this.#plans.step(campaign, input.from)
      if (!from) continue
      const manifest: Manifest = { step: input.from, entries: [] }
      const foreign: string[] = []
      for (let first = 0; first < from.step.size; first += PART) {
        const part = Array.from({ length: Math.min(PART, from.step.size - first) }, (_, i) => first + i)
        const winners = await this.#results.winners(campaign, input.from, part)
        for (const index of part) {
          const winner = winners.get(index)
          for (const output of winner?.outputs ?? []) {
            const { path, url, sizeBytes, checksum } = output
            if (input.output === null ? path.startsWith('.log/') : path !== input.output) continue
            if (!isOwn(winner!, output)) foreign.push(url)
            else manifest.entries.push({ index, output: path, ...namesOf(url), sizeBytes, checksum })
          }
        }
      }
      if (foreign.length > 0) {
        // Of results that were taken before such ones were refused.
        const facts = { campaign, step: step.name, from: input.from, outputs: foreign.length, first: foreign[0] }
        this.#log.error(facts, 'output.foreign')
      }
      manifests[String(position)] = await this.#blobs.put(pack(manifest))
    }
    return manifests
  }
}

/**
 * Files on a shared file system are written beside their final name and get it once their site's relay has heard the
 * verdict, which may be after the next step has begun: so both names are said.
 */
function namesOf(url: string): { url: string; written?: string } {
  const final = url.startsWith('file://') ? url.replace(/\.attempt-[\d-]+$/, '') : url
  return final === url ? { url } : { url: final, written: url }
}
