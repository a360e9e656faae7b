import { describe, expect, it } from 'vitest'
import { sampleNeeds } from '../test/sample-messages.ts'
import { type Shape, shapeOf, shapeWithout, siteMatches, siteRefusal, tasksPerShape, unmetNeeds } from './fit.ts'
import type { Needs } from './protocol/work.ts'

const GIB = 2 ** 30
const shape: Shape = {
  cores: 64,
  memoryBytes: 128 * GIB,
  scratchBytes: 100 * GIB,
  gpus: 4,
  gpuMemoryBytes: 40 * GIB,
  arch: 'x86_64',
  runtimes: ['host', 'container'],
  network: 'proxy',
}
const needs = (change: Partial<Needs>): Needs => ({ ...sampleNeeds, arch: [], ...change })

describe('fit - one need at a time, at its edge', () => {
  it.each<[string, Partial<Needs>, Partial<Shape>, number | null, string[]]>([
    ['nothing special', {}, {}, null, []],
    ['all the cores', { cores: 64 }, {}, null, []],
    ['a core more', { cores: 65 }, {}, null, ['cores']],
    ['all the memory', { memoryBytes: 128 * GIB }, {}, null, []],
    ['a byte more', { memoryBytes: 128 * GIB + 1 }, {}, null, ['memory']],
    ['scratch where there is none', { scratchBytes: 1 }, { scratchBytes: 0 }, null, ['scratch']],
    ['four GPUs', { gpus: 4, gpuMemoryBytes: 40 * GIB }, {}, null, []],
    ['five GPUs', { gpus: 5 }, {}, null, ['gpus']],
    ['a larger GPU', { gpus: 1, gpuMemoryBytes: 80 * GIB }, {}, null, ['gpu memory']],
    ['GPU memory without a GPU is no need', { gpus: 0, gpuMemoryBytes: 80 * GIB }, {}, null, []],
    ['any architecture', { arch: [] }, { arch: 'riscv64' }, null, []],
    ['one of two architectures', { arch: ['aarch64', 'x86_64'] }, {}, null, []],
    ['another architecture', { arch: ['aarch64'] }, {}, null, ['architecture']],
    ['a container', { runtime: 'container' }, {}, null, []],
    ['a container where there is only the host', { runtime: 'container' }, { runtimes: ['host'] }, null, ['runtime']],
    ['no runtime at all', {}, { runtimes: [] }, null, ['runtime']],
    ['a proxy', { network: 'proxy' }, {}, null, []],
    ['the open network behind a proxy', { network: 'outgoing' }, {}, null, ['network']],
    ['a proxy on an open network', { network: 'proxy' }, { network: 'outgoing' }, null, []],
    ['software that is there', { software: ['cvmfs:a'] }, { software: ['cvmfs:a', 'eessi:1'] }, null, []],
    [
      'software of which one is missing',
      { software: ['cvmfs:a', 'cvmfs:b'] },
      { software: ['cvmfs:a'] },
      null,
      ['software'],
    ],
    ['software at a peer of before', { software: ['eessi:1'] }, {}, null, ['software']],
    ['a group that is named', { group: '/vo/a' }, { groups: ['/vo/b', '/vo/a'] }, null, []],
    ['a group below one that is named', { group: '/vo/a/x' }, { groups: ['/vo/a/'] }, null, []],
    ['a group above one that is named', { group: '/vo' }, { groups: ['/vo/a'] }, null, ['group']],
    ['a group that only begins alike', { group: '/vo/ab' }, { groups: ['/vo/a'] }, null, ['group']],
    ['just enough time', { walltimeMs: 1000 }, {}, 1000, []],
    ['a millisecond short', { walltimeMs: 1001 }, {}, 1000, ['time left']],
    ['no end known', { walltimeMs: 1e12 }, {}, null, []],
  ])('%s', (_title, need, offered, timeLeftMs, unmet) => {
    const found = unmetNeeds(needs(need), { ...shape, ...offered }, timeLeftMs)
    expect(found.map((one) => one.need)).toEqual(unmet)
  })

  it('every unmet need is named, with what is wanted and what there is', () => {
    const all = needs({
      cores: 65,
      memoryBytes: 129 * GIB,
      scratchBytes: 101 * GIB,
      gpus: 5,
      gpuMemoryBytes: 41 * GIB,
      arch: ['aarch64'],
      network: 'outgoing',
      walltimeMs: 2,
    })
    const unmet = unmetNeeds(all, { ...shape, runtimes: [] }, 1)
    expect(unmet).toHaveLength(9)
    expect(unmet[0]).toEqual({ need: 'cores', wanted: 65, offered: 64 })
    expect(unmet.find((one) => one.need === 'runtime')).toEqual({ need: 'runtime', wanted: 'host', offered: 'nothing' })
  })
})

describe('fit - how many side by side', () => {
  it.each<[Partial<Needs>, number]>([
    [{ cores: 1, memoryBytes: 0 }, 64],
    [{ cores: 1, memoryBytes: 4 * GIB }, 32],
    [{ cores: 1, memoryBytes: 0, scratchBytes: 30 * GIB }, 3],
    [{ cores: 1, memoryBytes: 0, gpus: 3 }, 1],
    [{ cores: 65 }, 0],
    [{ cores: 1, gpus: 5 }, 0],
  ])('%o: %d', (need, count) => {
    expect(tasksPerShape(needs(need), shape)).toBe(count)
  })

  it('what was counted fits, and one more does not', () => {
    for (const cores of [1, 3, 7, 64]) {
      for (const memoryBytes of [0, GIB, 5 * GIB, 128 * GIB]) {
        const need = needs({ cores, memoryBytes })
        const count = tasksPerShape(need, shape)
        expect(unmetNeeds(need, shapeWithout(shape, need, count - 1), null)).toEqual([])
        expect(unmetNeeds(need, shapeWithout(shape, need, count), null)).not.toEqual([])
      }
    }
  })
})

describe('fit - site rules', () => {
  const labels = { jurisdiction: 'EU', cloud: '', odd: 'a=b' }
  it.each([
    ['ALPHA', true],
    ['alpha', false],
    ['label:jurisdiction=EU', true],
    ['label:jurisdiction=US', false],
    ['label:jurisdiction', true],
    ['label:cloud', true],
    ['label:cloud=', true],
    ['label:none', false],
    ['label:toString', false],
    ['label:toString=x', false],
  ])('%s', (rule, matches) => {
    expect(siteMatches(rule, 'ALPHA', labels)).toBe(matches)
  })

  it.each<[string, string[], string[], string | undefined]>([
    ['no rules', [], [], undefined],
    ['allowed by name', ['ALPHA'], [], undefined],
    ['allowed by label', ['BETA', 'label:jurisdiction=EU'], [], undefined],
    ['not among the allowed', ['BETA'], [], 'BETA'],
    ['denied', [], ['ALPHA'], 'not ALPHA'],
    ['denied wins over allowed', ['ALPHA'], ['label:jurisdiction'], 'not label:jurisdiction'],
  ])('%s', (_title, allowSites, denySites, wanted) => {
    expect(siteRefusal({ allowSites, denySites }, 'ALPHA', labels)?.wanted).toBe(wanted)
  })

  it('an equals sign in a label`s value is part of it', () => {
    expect(siteMatches('label:odd=a=b', 'ALPHA', labels)).toBe(true)
  })
})

describe('fit - a node as a shape', () => {
  it('loses its name, its labels and its time', () => {
    expect(shapeOf({ ...shape, node: 'n1', timeLeftMs: 5, labels: { a: 'b' } })).toEqual(shape)
  })
})
