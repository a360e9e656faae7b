import { mkdirSync, mkdtempSync, realpathSync, rmSync, symlinkSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { enforceFolder, enforcePolicy, enforceWrite, places, type SitePolicy } from './policy.ts'

const hex = 'a'.repeat(64)
const open: SitePolicy = { allowGroups: [], allowImages: [], hostRuntime: true, network: 'none', sharedFolders: [] }

test.each<[string, Partial<SitePolicy>, { group: string; image: string }, boolean]>([
  ['an open site takes all', {}, { group: '/vo', image: 'host' }, true],
  ['its group', { allowGroups: ['/vo/prod'] }, { group: '/vo/prod', image: 'host' }, true],
  ['a group below it', { allowGroups: ['/vo/prod'] }, { group: '/vo/prod/mc', image: 'host' }, true],
  ['not one that only begins alike', { allowGroups: ['/vo/prod'] }, { group: '/vo/production', image: 'host' }, false],
  ['not another', { allowGroups: ['/vo/prod'] }, { group: '/vo', image: 'host' }, false],
  ['no host runtime', { hostRuntime: false }, { group: '/vo', image: 'host' }, false],
  ['an image', { hostRuntime: false }, { group: '/vo', image: '/images/a.sif' }, true],
  [
    'an image by prefix',
    { allowImages: ['docker://registry.example/'] },
    { group: '/vo', image: 'docker://registry.example/a' },
    true,
  ],
  [
    'no other image',
    { allowImages: ['docker://registry.example/'] },
    { group: '/vo', image: 'docker://elsewhere/a' },
    false,
  ],
  ...(
    [
      ['/images', '/images/a.sif', true],
      ['/images', 'file:///images/a.sif', true],
      ['/images', '/images', true],
      ['/images', '/images-of-others/a.sif', false],
      ['/images', '/images/../home/someone/a', false],
      ['/images', 'file:///images/../home/someone/a', false],
      ['/images', '/images//../home/a', false],
      ['https://good.example/x', `https://good.example/x/a.sif#sha256:${hex}`, true],
      ['https://good.example', `https://good.example/a.sif#sha256:${hex}`, true],
      ['https://good.example', `https://GOOD.example/a.sif#sha256:${hex}`, true],
      ['https://good.example', `https://good.example.evil.org/a.sif#sha256:${hex}`, false],
      ['https://good.example', `https://good.example@evil.org/a.sif#sha256:${hex}`, false],
      ['https://good.example/x', `https://good.example/x/../y/a.sif#sha256:${hex}`, false],
      ['https://good.example/x', `https://good.example/x/%2e%2e/y/a.sif#sha256:${hex}`, false],
      ['docker://registry.example/sim', `docker://registry.example/sim@sha256:${hex}`, true],
      ['docker://registry.example/sim', `docker://registry.example/simulate@sha256:${hex}`, false],
      ['docker://registry.example/sim', `docker://registry.example/sim/../x@sha256:${hex}`, false],
      [`sha256:${hex}`, `https://anywhere.example/a.sif#sha256:${hex}`, true],
      [`sha256:${hex}`, `docker://anywhere.example/a@sha256:${hex}`, true],
      [`sha256:${hex}`, `https://anywhere.example/a.sif#sha256:${'b'.repeat(64)}`, false],
      // Nobody checks what is in a file.
      [`sha256:${hex}`, `/shared/data/evil.sif#sha256:${hex}`, false],
      [`sha256:${hex}`, `/shared/data/evil.sif@sha256:${hex}`, false],
      [`sha256:${hex}`, `file:///shared/data/evil.sif#sha256:${hex}`, false],
    ] as const
  ).map(([allowed, image, takes]): [string, Partial<SitePolicy>, { group: string; image: string }, boolean] => [
    `${image} where ${allowed} is allowed`,
    { allowImages: [allowed] },
    { group: '/vo', image },
    takes,
  ]),
  ['host beside image prefixes', { allowImages: ['/images/'] }, { group: '/vo', image: 'host' }, true],
])('policy - %s', (_what, more, template, allowed) => {
  const enforce = () => enforcePolicy({ ...open, ...more }, { ...template, needs: { network: 'none' } })
  if (allowed) expect(enforce).not.toThrow()
  else expect(enforce).toThrow(expect.objectContaining({ code: 'policy.refused' }))
})

test.each(['none', 'proxy', 'outgoing'] as const)('policy - no more network than %s', (network) => {
  const order = ['none', 'proxy', 'outgoing'] as const
  for (const wanted of order) {
    const enforce = () =>
      enforcePolicy({ ...open, network }, { group: '/vo', image: 'host', needs: { network: wanted } })
    if (order.indexOf(wanted) <= order.indexOf(network)) expect(enforce).not.toThrow()
    else expect(enforce).toThrow(expect.objectContaining({ code: 'policy.refused' }))
  }
})

test('policy - files: nothing where only containers run and no folder is named', () => {
  const sealed = { ...open, hostRuntime: false }
  expect(() => enforceFolder(sealed, '/home/someone/.ssh/authorized_keys', [])).toThrow('sharedFolders')
  expect(() => enforceFolder({ ...sealed, sharedFolders: ['/data'] }, '/data/x', [])).not.toThrow()
})

test('policy - files: what the site and its pilots keep is nobody’s input or output, also in a shared folder', async () => {
  const policy = { ...open, sharedFolders: ['/shared'], kept: ['/shared/STOP', '/shared/trace'] }
  for (const path of ['/shared/STOP', '/shared/trace/n1-20261122.jsonl']) {
    expect(() => enforceFolder(policy, path, [])).toThrow(expect.objectContaining({ code: 'policy.refused' }))
  }
  expect(() => enforceFolder(policy, '/shared/STOPPED', [])).not.toThrow()
})

test('policy - files: no output becomes an image that the site allows; as an input it may be read', async () => {
  const policy = { ...open, allowImages: ['/images', 'docker://registry.example/', `sha256:${hex}`] }
  await expect(enforceWrite(policy, '/images/evil.sif', [])).rejects.toMatchObject({ code: 'policy.refused' })
  await expect(enforceWrite(policy, '/imagesque/x', [])).resolves.toBeUndefined()
  expect(() => enforceFolder(policy, '/images/good.sif', [])).not.toThrow()
})

test('policy - files: a place is known by its real path too, also of what is not there yet', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'indraft-places-'))
  try {
    const real = join(realpathSync(folder), 'lustre/home')
    mkdirSync(real, { recursive: true })
    symlinkSync(real, join(folder, 'home'))
    const named = join(folder, 'home/site/pilot.json')
    const found = await places([named])
    expect(found).toEqual([named, join(real, 'site/pilot.json')])
    expect(() => enforceFolder(open, join(real, 'site/pilot.json'), found)).toThrow('belongs to the pilot')
  } finally {
    rmSync(folder, { recursive: true })
  }
})

test.each<[string, string[], string, boolean]>([
  ['anything where nothing is named', [], '/data/x', true],
  ['below a shared folder', ['/data/'], '/data/x', true],
  ['beside it', ['/data'], '/database/x', false],
  ["the pilot's own folder", [], '/scratch/p1/outbox/x', false],
  ['the credential itself', [], '/keys/pilot.json', false],
])('policy - files: %s', (_what, sharedFolders, path, allowed) => {
  const enforce = () => enforceFolder({ ...open, sharedFolders }, path, ['/scratch/p1', '/keys/pilot.json'])
  if (allowed) expect(enforce).not.toThrow()
  else expect(enforce).toThrow(expect.objectContaining({ code: 'policy.refused' }))
})
