import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { parse } from 'yaml'
import type { z } from 'zod'
import { loadPilotConfig, PILOT_SETTINGS } from '../config.ts'
import { parseSiteFile, pilotWords, siteFileSchema, traceFolders } from './site-file.ts'

const LEAST = `indraft: 1
folder: /shared/vacuum
credential: /shared/pilot.json
starter: slurm
kinds:
  cpu:
    time: 12h
    shape: {cores: 8}
`
const example = readFileSync(join(import.meta.dirname, '../../deploy/slurm/site.yaml'), 'utf8')

/** Paths of all settings; below a record of names, those of its first one. */
function pathsOf(schema: z.ZodType, given: unknown, path: string[] = []): string[] {
  const def = schema.def as {
    type: string
    shape?: Record<string, z.ZodType>
    innerType?: z.ZodType
    valueType?: z.ZodType
  }
  if (def.innerType) return pathsOf(def.innerType, given, path)
  if (def.shape) {
    return Object.entries(def.shape).flatMap(([key, inner]) =>
      pathsOf(inner, (given as Record<string, unknown> | undefined)?.[key], [...path, key]),
    )
  }
  const first = def.type === 'record' ? Object.keys((given ?? {}) as object)[0] : undefined
  if (first === undefined || path.at(-1) === 'pilots') return [path.join('.')]
  return pathsOf(def.valueType!, (given as Record<string, unknown>)[first], [...path, first])
}
const at = (value: unknown, path: string) =>
  path.split('.').reduce<unknown>((inner, key) => (inner as Record<string, unknown> | undefined)?.[key], value)

describe('site file', () => {
  it.each<[string, string, string]>([
    ['indraft: 1', 'indraft: 2', '1 indraft: expected 1, the version of this form'],
    ['starter: slurm', 'starter: pbs', '4 starter: Invalid option: expected one of "slurm"|"local"'],
    ['starter: slurm\n', '', '1 starter: Invalid option'],
    ['folder: /shared', 'folder: shared', '2 folder: expected a path that begins with /'],
    ['time: 12h', 'time: 12', '7 kinds.cpu.time: expected a duration with a unit, such as 90s or 2h'],
    [
      'time: 12h',
      'time: twelve',
      '7 kinds.cpu.time: expected a duration such as 90s or 2h, at least 1min, found "twelve"',
    ],
    ['time: 12h', 'time: 30s', '7 kinds.cpu.time: expected a duration such as 90s or 2h, at least 1min, found "30s"'],
    ['time: 12h', 'time: 5min', '7 kinds.cpu.leastTime: expected no more than time'],
    ['cores: 8', 'cores: 8, memory: 16', '8 kinds.cpu.shape.memory: expected a size with a unit, such as 64GiB'],
    ['cores: 8', 'cores: 8, ram: 16GiB', '8 kinds.cpu.shape.ram: no such setting'],
    ['cores: 8', 'cores: eight', '8 kinds.cpu.shape.cores: expected a number, found a text'],
    [
      '    time: 12h',
      '    account: none\n    time: 12h',
      '7 kinds.cpu.account: expected one of accounts (there are none)',
    ],
    ['  cpu:', '  CPU:', '7 kinds.CPU: expected a name of small letters'],
    ['kinds:', 'pilots: {idleBefor: 1s}\nkinds:', '5 pilots.idleBefor: no such setting of a pilot'],
    ['kinds:', 'pilots: {idleBefore: 10min}\nkinds:', '5 pilots.idleBefore: expected less than fizzle'],
    [
      'kinds:',
      'pilots: {idleAfter: long}\nkinds:',
      '5 pilots.idleAfter: idleAfter (the command line): expected a duration',
    ],
    ['kinds:', 'pilots: {startId: x}\nkinds:', '5 pilots.startId: set by indraft-pilot start itself'],
    [
      'kinds:',
      'accounts: {p: {until: tomorrow}}\nkinds:',
      '5 accounts.p.until: expected a time such as 2027-03-31T23:59:59Z',
    ],
    ...[
      ['--job-name=mine', '--job-name is not for a kind'],
      ['-Jmine', '-J is not for a kind'],
      ['--cluster=other', '--clusters is not for a kind'],
      ['-M, other', '-M is not for a kind'],
      ['--array=1-4', '--array is not for a kind'],
      ['--time=1:00:00', '--time is not for a kind'],
      ['--nodes=2', '--nodes is not for a kind'],
      ['--account=p', '--account is not for a kind'],
      ['--exclude=/etc/bad', 'expected the names of nodes to exclude, and no file'],
      ['-x', 'expected the names of nodes to exclude, and no file'],
    ].map(([own, why]): [string, string, string] => [
      '    time: 12h',
      `    sbatch:\n      - --exclusive\n      - ${own!.split(', ').join('\n      - ')}\n    time: 12h`,
      `9 kinds.cpu.sbatch.1: ${why}`,
    ]),
    ['kinds:', 'backOff: {first: 2h}\nkinds:', 'backOff.longest: expected no less than backOff.first'],
    ['starter: slurm', 'starter: local\nfizzle: [', ''],
  ])('site file - %j as %j is refused where it stands', (from, to, words) => {
    expect(LEAST).toContain(from)
    expect(() => parseSiteFile(LEAST.replace(from, to), 'site.yaml')).toThrow(words === '' ? 'site.yaml: ' : words)
    if (words !== '') expect(() => parseSiteFile(LEAST.replace(from, to), 'site.yaml')).toThrow('site.yaml:')
  })

  it('site file - all mistakes are said at once, in the order of their lines', () => {
    const refused = (text: string) => {
      try {
        parseSiteFile(text, 's')
      } catch (error) {
        return (error as Error).message.split('\n')
      }
      throw new Error('was not refused')
    }
    expect(refused(LEAST.replace('starter: slurm', 'starter: pbs').replace('time: 12h', 'tim: 12h'))).toEqual([
      's:4 starter: Invalid option: expected one of "slurm"|"local"',
      's:7 kinds.cpu.time: is missing; expected a duration with a unit, such as 90s or 2h',
      's:7 kinds.cpu.tim: no such setting; deploy/slurm/site.yaml explains all',
    ])
    const more = 'pilots: {idleBefor: 1s, ahed: 1s, startId: x}\nbackOff: {first: 2h}\nkinds:'
    expect(refused(LEAST.replace('kinds:', more).replace('time: 12h', 'account: p\n    time: 5min'))).toEqual([
      's:5 pilots.idleBefor: no such setting of a pilot (`indraft-pilot run --help`)',
      's:5 pilots.ahed: no such setting of a pilot (`indraft-pilot run --help`)',
      's:5 pilots.startId: set by indraft-pilot start itself',
      's:6 backOff.longest: expected no less than backOff.first',
      's:9 kinds.cpu.account: expected one of accounts (there are none)',
      's:9 kinds.cpu.leastTime: expected no more than time',
    ])
  })

  it('site file - what is not given has defaults', () => {
    const site = parseSiteFile(LEAST, 'site.yaml')
    expect(site).toMatchObject({ fizzle: 600_000, ask: { enabled: true, every: 120_000 }, caps: { running: 10 } })
    expect(site.kinds.cpu).toMatchObject({ time: 43_200_000, nodesPerJob: 1, shape: { memory: 2 ** 30 } })
  })

  it('site file - a kind has words of its own for sbatch, which mean something else than those that are taken', () => {
    const own = [
      '--exclusive',
      '--mem=0',
      '--time-min=60',
      '--wait-all-nodes=1',
      '--no-requeue',
      '-p',
      'main',
      '-x',
      'n1',
    ]
    const site = parseSiteFile(LEAST.replace('time:', `sbatch: [${own.join(', ')}]\n    time:`), 'f')
    expect(site.kinds.cpu!.sbatch).toEqual(own)
  })

  it('site file - pilots idle less long than the fizzle time; a kind has the last word', () => {
    const text = LEAST.replace('kinds:', 'pilots: {idleAfter: 1min, allowGroups: [/a, /b]}\nkinds:').replace(
      'shape:',
      'settings: {idleAfter: 2min}\n    shape:',
    )
    expect(pilotWords(parseSiteFile(text, 'f'), 'cpu')).toEqual([
      '--idle-before',
      '480s',
      '--trace-log',
      '/shared/vacuum/trace',
      '--idle-after',
      '2min',
      '--allow-groups',
      '/a,/b',
    ])
  })

  it('site file - where traces are: in its folder, or where pilots or a kind are told, each folder once', () => {
    const kinds = 'gpu: {time: 1h, shape: {cores: 1}}\n  cpu: {time: 1h, shape: {cores: 8}, settings: {traceLog: /t}}'
    const text = `${LEAST.slice(0, LEAST.indexOf('kinds:'))}kinds:\n  ${kinds}\n  fat: {time: 1h, shape: {cores: 9}}\n`
    expect(traceFolders(parseSiteFile(text, 'f'))).toEqual(['/shared/vacuum/trace', '/t'])
    expect(traceFolders(parseSiteFile(`${text}pilots: {traceLog: /all}\n`, 'f'))).toEqual(['/all', '/t'])
  })

  it('site file - the example explains every setting, each in a comment on its line', () => {
    const given = parse(example)
    const paths = pathsOf(siteFileSchema, given)
    expect(paths.length).toBeGreaterThan(45)
    expect(paths.filter((path) => at(given, path) === undefined)).toEqual([])
    const silent = example.split('\n').filter((line) => /^ {0,6}[a-zA-Z]\w*:/.test(line) && !line.includes('#'))
    const explained = ['scratch', 'network', 'memory', 'gpus', 'gpuMemory', 'arch', 'runtimes', 'cpu', 'project-1']
    expect(silent.map((line) => line.trim().split(':')[0]!).filter((key) => !explained.includes(key))).toEqual([])
  })

  it('site file - what the example shows as defaults are the defaults', () => {
    const shown = parseSiteFile(example, 'site.yaml')
    const defaults = parseSiteFile(LEAST, 'site.yaml')
    for (const key of [
      'command',
      'fizzle',
      'worthStarting',
      'ask',
      'look',
      'backOff',
      'caps',
      'nodes',
      'keepLogs',
    ] as const) {
      expect({ [key]: shown[key] }).toEqual({ [key]: defaults[key] })
    }
    const { shape: _shape, sbatch: _sbatch, account: _account, ...kind } = shown.kinds.cpu!
    const { shape: _other, sbatch: _none, account: _null, ...usual } = defaults.kinds.cpu!
    expect(kind).toEqual(usual)
  })

  it('site file - the example has every setting of a pilot that may stand there, each with its meaning', () => {
    const section = example.slice(example.indexOf('\npilots:'), example.indexOf('\nkinds:'))
    const shown = [...section.matchAll(/^ {2}(?:# )?([a-zA-Z]+): \S.*? # \S/gm)].map(([, key]) => key!)
    // What `start` gives each pilot itself, and what is for tests.
    const others = ['credential', 'endFolder', 'startId', 'stopFile', 'taskLimit', 'runtimeLimit', 'timeAsked']
    others.push('name', 'node')
    const expected = Object.keys(PILOT_SETTINGS).filter((key) => ![...others, 'failpoints'].includes(key))
    expect(shown.sort()).toEqual(expected.sort())
  })

  it('site file - what it shows of pilots are their defaults, and what it shows with # could stand there', () => {
    const { pilots } = parseSiteFile(example, 'site.yaml')
    const defaults: Record<string, unknown> = loadPilotConfig({}, undefined, {})
    const given: Record<string, unknown> = loadPilotConfig(pilots, undefined, {})
    for (const key of Object.keys(pilots)) expect({ [key]: given[key] }).toEqual({ [key]: defaults[key] })
    const all = parseSiteFile(example.replaceAll(/^ {2}# ([a-zA-Z]+: )/gm, '  $1'), 'site.yaml')
    expect(Object.keys(all.pilots).length).toBeGreaterThan(Object.keys(pilots).length + 8)
  })
})
