import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { captured } from './captured/read.ts'
import { type GpuEnvironment, narrow, parseNvidia, parseRocm } from './gpus.ts'

const MIB = 2 ** 20
const nothingSaid: GpuEnvironment = { cudaVisible: null, rocrVisible: null, slurmGpus: null }
const four = parseNvidia(captured('gpu/four-query.csv'), '')
const divided = parseNvidia(captured('gpu/mig-query.csv'), captured('gpu/mig-list.txt'))
const ids = (listing: typeof four, env: Partial<GpuEnvironment>) =>
  narrow(listing, { ...nothingSaid, ...env }).devices.map(({ id }) => id)
const uuid = (i: number) => four.devices[i]!.id

describe('what the tools say', () => {
  test('gpus - NVIDIA: UUID, memory, model, driver', () => {
    const { driver, devices } = narrow(four, nothingSaid)
    expect(driver).toBe('535.183.06')
    expect(devices).toHaveLength(4)
    expect(devices[1]).toEqual({
      id: 'GPU-22222222-aaaa-bbbb-cccc-000000000001',
      model: 'NVIDIA H100 80GB HBM3',
      memoryBytes: 81559 * MIB,
    })
  })

  test('gpus - a divided GPU is its instances, each with less than its nominal memory', () => {
    const { devices } = narrow(divided, nothingSaid)
    expect(devices).toHaveLength(7)
    expect(devices[6]).toMatchObject({
      id: 'MIG-a8e039b8-35d4-590b-80ab-bc9d329d2067',
      model: 'NVIDIA A100-SXM4-40GB MIG 1g.5gb',
    })
    // Such an instance has 4864 MiB.
    expect(devices[6]!.memoryBytes).toBeLessThanOrEqual(4864 * MIB)
    expect(devices[6]!.memoryBytes).toBeGreaterThan(4 * 1024 * MIB)
  })

  test('gpus - AMD: each die is a device, numbered where no unique id is said', () => {
    const { vendor, devices } = narrow(parseRocm(captured('gpu/rocm-mi250.json')), nothingSaid)
    expect(vendor).toBe('amd')
    expect(devices).toEqual([
      { id: '0', model: 'AMD INSTINCT MI250 (MCM) OAM AC MBA', memoryBytes: 68702699520 },
      { id: '1', model: 'AMD INSTINCT MI250 (MCM) OAM AC MBA', memoryBytes: 68702699520 },
    ])
  })

  test('gpus - AMD: cards in no order, by unique id', () => {
    expect(ids(parseRocm(captured('gpu/rocm-unique.json')), {})).toEqual([
      'GPU-7ef570db1b346018',
      'GPU-6be2ee3b2b314cfc',
      'GPU-a8a0e90b7ea1c0ad',
      'GPU-2f94151ef4b53e39',
    ])
  })

  test('gpus - errors and unknown lines are no devices', () => {
    expect(parseNvidia('No devices were found\n', '').devices).toEqual([])
    expect(parseNvidia('0, [Insufficient Permissions]\n', 'garbage').devices).toEqual([])
    expect(parseRocm('{}').devices).toEqual([])
  })

  const real = readdirSync(join(import.meta.dirname, 'captured', 'gpu')).filter((name) => /^node-.*query/.test(name))
  test.each(real)('gpus - %s, as a real node said it', (name) => {
    const listing = parseNvidia(captured(`gpu/${name}`), captured(`gpu/${name.replace('query', 'list')}`))
    expect(listing.devices.length).toBeGreaterThan(0)
    for (const { id, memoryBytes } of listing.devices) {
      expect(id).toMatch(/^(GPU|MIG)-[0-9a-f-]{36}$/)
      expect(memoryBytes).toBeGreaterThan(1024 * MIB)
    }
    expect(listing.driver).toMatch(/^\d+\.\d+/)
  })
})

describe('what the job was given', () => {
  test.each<[string, Partial<GpuEnvironment>, number[]]>([
    ['all where nothing is said', {}, [0, 1, 2, 3]],
    ['by number', { cudaVisible: '2,0' }, [2, 0]],
    ['by UUID', { cudaVisible: 'GPU-33333333-aaaa-bbbb-cccc-000000000002' }, [2]],
    ['by the beginning of a UUID', { cudaVisible: 'GPU-4444' }, [3]],
    ['none where the variable is empty', { cudaVisible: '' }, []],
    ['none for Slurm jobs without GPUs', { cudaVisible: 'NoDevFiles' }, []],
    ["Slurm's numbers of the node", { slurmGpus: '1,3' }, [1, 3]],
    ['all that a device cgroup shows', { slurmGpus: '4,5,6,7' }, [0, 1, 2, 3]],
    ["CUDA's own word before Slurm's", { cudaVisible: '0', slurmGpus: '2' }, [0]],
    ["nothing of another vendor's", { rocrVisible: '' }, [0, 1, 2, 3]],
  ])('gpus - %s', (_what, env, expected) => {
    expect(ids(four, env)).toEqual(expected.map(uuid))
  })

  test('gpus - MIG instances by UUID, and all of a GPU that was given', () => {
    expect(ids(divided, { cudaVisible: 'MIG-fe9bc608-60f5-5479-8cc4-1827021d27a9' })).toHaveLength(1)
    expect(ids(divided, { cudaVisible: 'GPU-838f60d9-651f-9166-ea42-f9da674a6947' })).toHaveLength(7)
    expect(ids(divided, { cudaVisible: '0' })).toHaveLength(7)
  })

  test('gpus - AMD: a number beyond the cards shown is kept as the job was given it', () => {
    const cards = parseRocm(captured('gpu/rocm-mi250.json'))
    expect(ids(cards, { rocrVisible: '1' })).toEqual(['1'])
    expect(ids(cards, { rocrVisible: '4' })).toEqual(['4'])
  })

  test('gpus - a device that is not there is said', () => {
    expect(() => ids(four, { cudaVisible: '7' })).toThrow('GPU 7')
  })
})
