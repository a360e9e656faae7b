import { expect, test } from 'vitest'
import { sampleNeeds } from '../../test/sample-messages.ts'
import { nearestSite, possibleSites } from './nearest.ts'

const shape = {
  cores: 8,
  memoryBytes: 2 ** 34,
  scratchBytes: 2 ** 40,
  gpus: 0,
  gpuMemoryBytes: 0,
  arch: 'x86_64',
  runtimes: ['host' as const],
  network: 'outgoing' as const,
}
const needs = {
  ...sampleNeeds,
  cores: 4,
  memoryBytes: 2 ** 30,
  scratchBytes: 0,
  gpus: 0,
  arch: [],
  network: 'none' as const,
  runtime: 'host' as const,
  allowSites: [],
  denySites: [],
}

test('nearest - nothing to compare with is nothing', () => {
  expect(nearestSite(needs, [])).toBeNull()
})

test('nearest - the site that lacks least, and what it lacks', () => {
  const sites = [
    { site: 'SMALL', labels: {}, shapes: [{ ...shape, cores: 2, memoryBytes: 1 }] },
    { site: 'LARGE', labels: {}, shapes: [{ ...shape, cores: 2 }, shape] },
  ]
  expect(nearestSite(needs, sites)).toEqual({ site: 'LARGE', unmet: [] })
  expect(nearestSite({ ...needs, gpus: 1 }, sites)).toMatchObject({ site: 'LARGE', unmet: [{ need: 'gpus' }] })
  expect(nearestSite({ ...needs, denySites: ['LARGE'] }, sites)?.unmet[0]).toMatchObject({ need: 'site' })
})

test('nearest - sites that may run it: by its own rules, whatever nodes they have and whomever these serve', () => {
  const of = (site: string, ...groups: (string[] | undefined)[]) => ({
    site,
    labels: {},
    shapes: groups.map((one) => ({ ...shape, cores: 1, ...(one && { groups: one }) })),
  })
  const sites = [of('NEW'), of('ALL', undefined), of('SOME', ['/x'], [needs.group]), of('OTHERS', ['/x'])]
  expect(possibleSites(needs, sites)).toEqual(['NEW', 'ALL', 'SOME', 'OTHERS'])
  expect(possibleSites({ ...needs, allowSites: ['SOME', 'OTHERS'] }, sites)).toEqual(['SOME', 'OTHERS'])
})
