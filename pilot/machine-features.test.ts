import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { featureEnds, jobFeatures, readFeature } from './machine-features.ts'

const KEYS: Record<string, string> = {
  'job/jobstart_secs': '1800000000\n',
  'job/wall_limit_secs': '86400',
  'job/cpu_limit_secs': '400000',
  'job/allocated_cpu': '8',
  'job/max_rss_bytes': '17179869184',
  'job/scratch_limit_bytes': '0',
  'machine/shutdowntime': '1800090000',
  'machine/total_cpu': 'none',
}

let folder: string
let server: Server
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-features-'))
  for (const [path, value] of Object.entries(KEYS)) {
    mkdirSync(join(folder, path, '..'), { recursive: true })
    writeFileSync(join(folder, path), value)
  }
  server = createServer((request, response) => {
    const value = KEYS[request.url!.slice(1)]
    // A page of words would be no number anyway.
    response.writeHead(value === undefined ? 404 : 200).end(value ?? '0')
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
})
afterEach(async () => {
  server.closeAllConnections()
  await new Promise((resolve) => server.close(resolve))
  rmSync(folder, { recursive: true, force: true })
})

const places: [string, (name: string) => string][] = [
  ['folders', (name) => join(folder, name)],
  ['addresses', (name) => `http://127.0.0.1:${(server.address() as AddressInfo).port}/${name}`],
]

describe.each(places)('Machine/Job Features in %s', (_what, at) => {
  test('machine features - what the job was given', async () => {
    expect(await jobFeatures(at('job'))).toEqual({ cores: 8, memoryBytes: 17179869184, scratchBytes: 0 })
  })

  test('machine features - a key that is not there, or no number, is not said', async () => {
    expect(await readFeature(at('job'), 'hs06_job')).toBeNull()
    expect(await readFeature(at('machine'), 'total_cpu')).toBeNull()
  })

  test('machine features - ends by wall time, CPU time and shutdown', async () => {
    expect((await featureEnds(at('machine'), at('job'))).sort()).toEqual([1800050000, 1800086400, 1800090000])
  })
})

test('machine features - nobody there is nothing said', async () => {
  expect(await readFeature('http://127.0.0.1:9/job', 'wall_limit_secs')).toBeNull()
  expect(await jobFeatures(null)).toEqual({ cores: null, memoryBytes: null, scratchBytes: null })
})
