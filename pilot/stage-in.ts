/**
 * What an attempt needs before it starts, brought into its working folder: files by URL, and the winners' outputs of
 * earlier steps, one under a name or all of them in a folder, with a list of their names where the step wants one.
 */
import { lstat, mkdir, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { IndraftError } from '../shared/errors.ts'
import { expand, type Values } from '../shared/expand.ts'
import type { BundleBody, TemplateBody } from '../shared/protocol/work.ts'
import { formatBytes } from '../shared/quantity.ts'
import { inside, insideWork } from './attempt-folder.ts'
import { fetchInput, fetchManifest, fetchWinner, type Transfer, transferAll } from './drivers.ts'

export interface StageIn {
  inputs: TemplateBody['inputs']
  manifests: BundleBody['manifests']
  values: Values
  /** The attempt's working folder. */
  work: string
  /** Manifests are kept here, for all tasks of their step. */
  blobsFolder: string
  transfer: Transfer
}

/**
 * All together have the task's scratch space and no more: a node is not filled by what it is only about to watch.
 * @throws IndraftError as fetchInput; campaign.invalid for a path that leaves the folder
 */
export async function fetchInputs({ inputs, manifests, values, work, blobsFolder, transfer }: StageIn): Promise<void> {
  let leftBytes = transfer.maxBytes
  for (const [position, input] of inputs.entries()) {
    const path = expand(input.path, values)
    const isFolder = path.endsWith('/')
    const target = join(work, insideWork(isFolder ? path.slice(0, -1) : path, 'campaign.invalid'))
    if (input.url !== null) {
      const url = expand(input.url, values)
      const within = { ...transfer, maxBytes: leftBytes }
      await transferAll([url], within, (_url, _i, together) => fetchInput(url, target, input.checksum, together))
      leftBytes -= (await lstat(target)).size
      continue
    }
    const digest = manifests[String(position)]
    if (!digest) throw new IndraftError('stage.inputMissing', `no manifest for the outputs of step ${input.from}`)
    const manifest = await fetchManifest(digest, blobsFolder, transfer)
    const entries = manifest.entries.filter((entry) => input.output === null || entry.output === input.output)
    if (!isFolder && entries.length !== 1) {
      const found = `step ${input.from} has ${entries.length} such outputs`
      throw new IndraftError('stage.inputMissing', `${found}; "${path}" holds one, a path that ends in / many`)
    }
    const names = entries.map((entry) =>
      isFolder ? `${path}${entry.index}/${inside(entry.output, 'stage.inputMissing')}` : path,
    )
    // Each is held to its size: what comes side by side cannot be more than this.
    const bytes = entries.reduce((sum, { sizeBytes }) => sum + Math.max(0, sizeBytes), 0)
    if (bytes > leftBytes) {
      const room = `the task has ${formatBytes(leftBytes)} of scratch left`
      throw new IndraftError('payload.scratch', `the outputs of step ${input.from} have ${formatBytes(bytes)}; ${room}`)
    }
    leftBytes -= bytes
    await transferAll(entries, transfer, (entry, i, together) => fetchWinner(entry, join(work, names[i]!), together))
    if (input.list === null) continue
    const list = join(work, insideWork(expand(input.list, values), 'campaign.invalid'))
    await mkdir(dirname(list), { recursive: true })
    await writeFile(list, names.map((name) => `${name}\n`).join(''))
  }
}
