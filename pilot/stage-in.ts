/**
 * What an attempt needs before it starts, brought into its working folder: files by URL, and the winners' outputs of
 * earlier steps, one under a name or all of them in a folder, with a list of their names where the step wants one.
 */
import { mkdir, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { IndraftError } from '../shared/errors.ts'
import { expand, type Values } from '../shared/expand.ts'
import type { BundleBody, TemplateBody } from '../shared/protocol/work.ts'
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

/** @throws IndraftError as fetchInput; campaign.invalid for a path that leaves the folder */
export async function fetchInputs({ inputs, manifests, values, work, blobsFolder, transfer }: StageIn): Promise<void> {
  for (const [position, input] of inputs.entries()) {
    const path = expand(input.path, values)
    const isFolder = path.endsWith('/')
    const target = join(work, insideWork(isFolder ? path.slice(0, -1) : path, 'campaign.invalid'))
    if (input.url !== null) {
      await fetchInput(expand(input.url, values), target, input.checksum, transfer)
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
    await transferAll(entries, (entry, i) => fetchWinner(entry, join(work, names[i]!), transfer))
    if (input.list === null) continue
    const list = join(work, insideWork(expand(input.list, values), 'campaign.invalid'))
    await mkdir(dirname(list), { recursive: true })
    await writeFile(list, names.map((name) => `${name}\n`).join(''))
  }
}
