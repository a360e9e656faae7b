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

  test('gpus - AMD: memory that is not said is none, not nonsense', () => {
    const said = { card0: { 'Unique ID': '0xa', 'VRAM Total Memory (B)': 'N/A' } }
    expect(parseRocm(JSON.stringify(said)).devices).toMatchObject([{ id: 'GPU-a', memoryBytes: 0 }])
  })
})

describe('nodes whose outputs were published', () => {
  /** What is known of its memory: no more than, no less. */
  type Known = readonly [model: string, mostMib: number, leastMib: number]
  const NODES: Record<string, { driver: string; devices: readonly Known[] }> = {
    'a100-mixed': {
      driver: '525.85.12',
      devices: [
        ...times(3, ['NVIDIA A100-SXM4-80GB', 81920, 81920]),
        // Of nominal 20 GB such an instance has 19.5 GiB at least.
        ...times(4, ['NVIDIA A100-SXM4-80GB MIG 1g.20gb', 19968, 17 * 1024]),
      ],
    },
    'a100-old-driver': {
      driver: '450.80.02',
      devices: [
        ...times(2, ['A100-SXM4-40GB MIG 3g.20gb', 20096, 17 * 1024]),
        ['A100-SXM4-40GB MIG 1g.5gb', 4864, 4 * 1024],
      ],
    },
    'beside-graphics': { driver: '', devices: [['Navi 21 [Radeon RX 6800/6800 XT / 6900 XT]', 16368, 16368]] },
    gb10: { driver: '580.126.09', devices: [['NVIDIA GB10', 0, 0]] },
    'h100-shared': {
      driver: '570.86.15',
      devices: [
        // Three share what one has: 39.5 GiB together.
        ...times(3, ['NVIDIA H100 80GB HBM3 MIG 1c.3g.40gb', 40448 / 3, 11 * 1024]),
        ...times(2, ['NVIDIA H100 80GB HBM3 MIG 1g.10gb', 9728, 8 * 1024]),
      ],
    },
    mi100: { driver: '5.13.20.22.10', devices: times(2, ['Arcturus GL-XL [AMD Instinct MI100]', 32752, 32752]) },
    rx7900: { driver: '6.10.5', devices: [['Radeon RX 7900 XT', 20464, 20464]] },
  }
  /** Without the lines that say where the form was seen. */
  const said = (file: string) => captured(`gpu/node-${file}`).replace(/^#.*\n/gm, '')
  const files = readdirSync(join(import.meta.dirname, 'captured', 'gpu')).filter((name) => name.startsWith('node-'))
  const nodes = [...new Set(files.map((name) => name.replace(/^node-(.*)-(query\.csv|list\.txt|rocm\.txt)$/, '$1')))]

  test('gpus - every node that was captured is held against what is known of it, each with its source', () => {
    expect(nodes.sort()).toEqual(Object.keys(NODES).sort())
    for (const file of files) expect(captured(`gpu/${file}`), file).toMatch(/^# Form: https:\/\//)
  })

  test.each(nodes)('gpus - %s', (name) => {
    const listing = files.includes(`node-${name}-rocm.txt`)
      ? parseRocm(said(`${name}-rocm.txt`))
      : parseNvidia(said(`${name}-query.csv`), said(`${name}-list.txt`))
    const { driver, devices } = NODES[name]!
    expect(listing.driver ?? '').toBe(driver)
    expect(listing.devices.map(({ model }) => model)).toEqual(devices.map(([model]) => model))
    for (const [at, [model, mostMib, leastMib]] of devices.entries()) {
      expect(listing.devices[at]!.memoryBytes, model).toBeLessThanOrEqual(mostMib * MIB)
      expect(listing.devices[at]!.memoryBytes, model).toBeGreaterThanOrEqual(leastMib * MIB)
    }
    // What a payload is shown with them is theirs alone.
    const shown = listing.devices.map(({ id }) => id)
    expect(new Set(shown).size).toBe(shown.length)
    for (const id of shown) expect(ids(listing, { cudaVisible: id, rocrVisible: id })).toEqual([id])
  })
})

function times(count: number, one: readonly [string, number, number]) {
  return Array.from({ length: count }, () => one)
}

describe('what the job was given', () => {
  test.each<[string, Partial<GpuEnvironment>, number[]]>([
    ['all where nothing is said', {}, [0, 1, 2, 3]],
    ['by number', { cudaVisible: '2,0' }, [2, 0]],
    ['by number, with an empty name', { cudaVisible: '0,' }, [0]],
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
