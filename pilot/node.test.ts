import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { loadPilotConfig, readBatchEnvironment } from './config.ts'
import { lookAround, shareMemory, testScratch } from './node.ts'

const MIB = 2 ** 20
const GIB = 2 ** 30

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-node-'))
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

describe('memory and scratch', () => {
  const disk = { budgetBytes: 8 * GIB, freeBytes: 100 * GIB, isInMemory: false, memory: null, scratchSpace: null }
  const memory = { ...disk, isInMemory: true }
  test.each<[string, typeof disk | Parameters<typeof shareMemory>[0], number, number]>([
    ['a disk takes no memory', disk, 8 * GIB, 100 * GIB],
    ['what is set is offered', { ...disk, memory: GIB, scratchSpace: 5 * GIB }, GIB, 5 * GIB],
    ['no more scratch than is free', { ...disk, scratchSpace: 500 * GIB }, 8 * GIB, 100 * GIB],
    ['without a disk, files take a quarter', memory, 6 * GIB, 2 * GIB],
    ['without a disk, scratch that is set is taken from memory', { ...memory, scratchSpace: GIB }, 7 * GIB, GIB],
    ['without a disk, memory that is set leaves the rest', { ...memory, memory: 5 * GIB }, 5 * GIB, 3 * GIB],
    ['a small tmpfs takes no more than it has', { ...memory, freeBytes: 64 * MIB }, 8 * GIB - 64 * MIB, 64 * MIB],
  ])('node - %s', (_what, given, memoryBytes, scratchBytes) => {
    expect(shareMemory(given)).toEqual({ memoryBytes, scratchBytes })
  })

  test.runIf(existsSync('/dev/shm'))('node - a folder in memory is noticed', async () => {
    const shm = mkdtempSync('/dev/shm/indraft-node-')
    try {
      const look = async (scratch: string) => {
        const config = { ...loadPilotConfig({}, undefined, {}), scratch, cvmfs: join(folder, 'none') }
        return (await lookAround({ config, batch: readBatchEnvironment({}), runtimes: ['host'], timeLeftMs: null }))
          .facts
      }
      const inMemory = await look(shm)
      expect(inMemory.labels.scratch).toBe('memory')
      const onDisk = await look(folder)
      expect(inMemory.memoryBytes + inMemory.scratchBytes).toBeLessThanOrEqual(onDisk.memoryBytes)
    } finally {
      rmSync(shm, { recursive: true })
    }
  })
})

test.each<[string, Record<string, string>]>([
  ['node', { SLURM_MEM_PER_NODE: '1024' }],
  ['processor', { SLURM_MEM_PER_CPU: '512', SLURM_CPUS_ON_NODE: '2' }],
  ['GPU', { SLURM_MEM_PER_GPU: '256', SLURM_GPUS_ON_NODE: '4' }],
])('node - the memory that Slurm gives by %s', async (_what, said) => {
  const config = { ...loadPilotConfig({}, undefined, {}), scratch: folder, cvmfs: join(folder, 'none'), gpus: 0 }
  const sight = { config, runtimes: ['host' as const], timeLeftMs: null }
  const { facts } = await lookAround({ ...sight, batch: readBatchEnvironment(said) })
  expect(facts.memoryBytes).toBe(GIB - 256 * MIB)
})

test('node - the smallest of what Slurm and the job features say', async () => {
  writeFileSync(join(folder, 'allocated_cpu'), '1')
  writeFileSync(join(folder, 'max_rss_bytes'), String(GIB))
  const config = { ...loadPilotConfig({}, undefined, {}), scratch: folder, cvmfs: join(folder, 'none') }
  const batch = { ...readBatchEnvironment({ SLURM_CPUS_ON_NODE: '2', SLURM_MEM_PER_NODE: '2048' }) }
  const sight = { config, runtimes: ['host' as const], timeLeftMs: null }
  expect((await lookAround({ ...sight, batch })).facts.memoryBytes).toBeLessThanOrEqual(2048 * MIB - 256 * MIB)
  const { facts } = await lookAround({ ...sight, batch: { ...batch, jobFeatures: folder } })
  expect(facts).toMatchObject({ cores: 1, memoryBytes: GIB - 256 * MIB })
})

test('node - whom the site lets work here is told, unless it is everybody or more than can be told', async () => {
  const groupsOf = async (allowGroups: string[]) => {
    const config = { ...loadPilotConfig({}, undefined, {}), scratch: folder, cvmfs: join(folder, 'none'), allowGroups }
    const sight = { config, batch: readBatchEnvironment({}), runtimes: ['host' as const], timeLeftMs: null }
    return (await lookAround(sight)).facts.groups
  }
  expect(await groupsOf([])).toBeUndefined()
  expect(await groupsOf(['/a', '/b'])).toEqual(['/a', '/b'])
  expect(await groupsOf(Array.from({ length: 17 }, (_, i) => `/vo/${i}`))).toBeUndefined()
})

test('node - GPUs that the batch system gave and nobody finds are said', async () => {
  if (existsSync('/dev/nvidiactl') || existsSync('/dev/kfd')) return
  const config = { ...loadPilotConfig({}, undefined, {}), scratch: folder, cvmfs: join(folder, 'none') }
  const batch = readBatchEnvironment({ SLURM_JOB_GPUS: '0,1' })
  const sight = { batch, runtimes: ['host' as const], timeLeftMs: null }
  expect((await lookAround({ ...sight, config })).troubles).toEqual([expect.stringContaining('GPUs 0,1')])
  expect((await lookAround({ ...sight, config: { ...config, gpus: 0 } })).troubles).toEqual([])
})

test('node - a good scratch folder passes, one that cannot be written does not', async () => {
  expect((await testScratch(folder)).filter(({ ok }) => !ok)).toEqual([])
  writeFileSync(join(folder, 'file'), '')
  const bad = await testScratch(join(folder, 'file'))
  expect(bad.map(({ ok }) => ok)).toEqual([false, false, false])
})
