import { describe, expect, test } from 'vitest'
import { expand, valuesOf } from '../../shared/expand.ts'
import { checkCampaign, problemLine, tablesNamed } from './check.ts'
import type { CampaignPlan } from './model.ts'
import type { Problem } from './source.ts'

const HEAD = 'indraft: 1\nname: ising\ngroup: /vo.example/prod\ndefaults: {image: host}\n'

function plan(text: string, tables: Record<string, string> = {}): CampaignPlan {
  const checked = checkCampaign(text, tables, 'ada')
  if ('problems' in checked) throw new Error(checked.problems.map((p) => problemLine('f', p)).join('\n'))
  return checked.plan
}

function problems(text: string, tables: Record<string, string> = {}): Problem[] {
  const checked = checkCampaign(text, tables, 'ada')
  return 'problems' in checked ? checked.problems : []
}

const step = (lines: string) => `${HEAD}steps:\n  sim:\n    command: [sim]\n${lines.replace(/^/gm, '    ')}`

describe('campaign file - what is refused', () => {
  test.each<[string, string, string, RegExp]>([
    [
      'an unknown key at the top',
      `${HEAD}prioritty: 3\nsteps: {a: {command: [x]}}`,
      'prioritty',
      /did you mean priority/,
    ],
    ['an unknown key in a step', step('imputs: []'), 'steps.sim.imputs', /did you mean inputs/],
    ['an unknown key in resources', step('resources: {core: 2}'), 'steps.sim.resources.core', /did you mean cores/],
    ['an unknown key in after', step('after: {step: sim, acept: 5%}'), 'steps.sim.after.acept', /did you mean accept/],
    ['a key of a later version', step('scouts: 20'), 'steps.sim.scouts', /not supported yet/],
    [
      'a key of a later version at the top',
      `${HEAD}notify: {}\nsteps: {a: {command: [x]}}`,
      'notify',
      /not supported yet/,
    ],
    ['each in after', step('after: {step: sim, each: 1}'), 'steps.sim.after.each', /not supported yet/],
    ['several nodes', step('resources: {nodes: 4}'), 'steps.sim.resources.nodes', /several nodes \(MPI\)/],
    [
      'memory without a unit',
      step('resources: {memory: 4}'),
      'steps.sim.resources.memory',
      /size with a unit.*found 4/,
    ],
    [
      'walltime without a unit',
      step('resources: {walltime: "90"}'),
      'steps.sim.resources.walltime',
      /duration with a unit/,
    ],
    ['half a core', step('resources: {cores: 0.5}'), 'steps.sim.resources.cores', /whole number from 1/],
    ['no command', `${HEAD}steps: {a: {count: 3}}`, 'steps.a.command', /is missing: expected a list of arguments/],
    [
      'a command as text',
      `${HEAD}steps: {a: {command: sim --x}}`,
      'steps.a.command',
      /list of arguments.*found "sim --x"/,
    ],
    ['no name', 'indraft: 1\ngroup: /a\nsteps: {a: {command: [x]}}', 'name', /is missing/],
    ['no version', 'name: a\ngroup: /a\nsteps: {a: {command: [x]}}', 'indraft', /is missing: expected 1/],
    [
      'a group without a slash',
      'indraft: 1\nname: a\ngroup: prod\nsteps: {a: {command: [x]}}',
      'group',
      /such as \/vo/,
    ],
    ['no steps', HEAD, 'steps', /is missing/],
    ['empty steps', `${HEAD}steps: {}`, 'steps', /at least one step/],
    [
      'a step without image',
      'indraft: 1\nname: a\ngroup: /a\nsteps: {a: {command: [x]}}',
      'steps.a.image',
      /expected host/,
    ],
    ['an image tag', step('image: docker://busybox:latest'), 'steps.sim.image', /digest/],
    ['an image by URL without checksum', step('image: https://h/x.sif'), 'steps.sim.image', /checksum/],
    ['an image by relative path', step('image: x.sif'), 'steps.sim.image', /a path/],
    ['count and sweep', step('count: 2\nsweep: {T: [1]}'), 'steps.sim.sweep', /only one of/],
    ['a sweep over a built-in name', step('sweep: {index: [1]}'), 'steps.sim.sweep.index', /built in/],
    ['an empty range', step('sweep: {T: 5..1}'), 'steps.sim.sweep.T', /has no values/],
    ['a strange range', step('sweep: {T: 1-5}'), 'steps.sim.sweep.T', /range such as 1\.\.100/],
    ['too many tasks', step('sweep: {a: 1..10000, b: 1..10000}'), 'steps.sim.sweep', /100000000 tasks/],
    ['too high a count', step('count: 10000001'), 'steps.sim.count', /from 1 to 10000000/],
    ['a table that is not sent', step('table: runs.csv'), 'steps.sim.table', /was not sent/],
    ['after a step that is not there', step('after: simm'), 'steps.sim.after', /there is no step "simm"/],
    ['after itself', step('after: sim'), 'steps.sim.after', /circle: sim -> sim/],
    ['accept without a percent sign', step('after: {step: sim, accept: 0.9}'), 'steps.sim.after.accept', /98%/],
    [
      'a path that leaves the folder',
      step('outputs: [{path: ../x}]'),
      'steps.sim.outputs[0].path',
      /inside the task folder/,
    ],
    [
      'an absolute path',
      step('inputs: [{url: "https://a/b", path: /etc/x}]'),
      'steps.sim.inputs[0].path',
      /inside the task folder/,
    ],
    ['an output in .log', step('outputs: [{path: .log/stdout}]'), 'steps.sim.outputs[0].path', /another path/],
    [
      'two outputs of one path',
      step('outputs: [{path: x}, {path: x}]'),
      'steps.sim.outputs[1].path',
      /another output's path/,
    ],
    [
      'one file for many tasks',
      step('count: 2\noutputs: [{path: x, url: file:///d/x}]'),
      'steps.sim.outputs[0].url',
      /same file/,
    ],
    [
      'an output scheme of later',
      step('outputs: [{path: x, url: "s3://b/$(index)"}]'),
      'steps.sim.outputs[0].url',
      /s3: is not supported yet/,
    ],
    ['an input of nothing', step('inputs: [{path: x}]'), 'steps.sim.inputs[0]', /exactly one of url, from/],
    [
      'an input from a step not waited for',
      step('inputs: [{from: gen, path: in/}]'),
      'steps.sim.inputs[0].from',
      /not among the steps of after/,
    ],
    [
      'a checksum of no algorithm',
      step('inputs: [{url: "https://a/b", path: x, checksum: "77"}]'),
      'steps.sim.inputs[0].checksum',
      /adler32/,
    ],
    [
      'an unknown name in an argument',
      step('env: {S: "$(sead)"}\nsweep: {seed: [1]}'),
      'steps.sim.env.S',
      /did you mean \$\(seed\)/,
    ],
    ['a name that is not closed', step('env: {S: "$(seed"}\nsweep: {seed: [1]}'), 'steps.sim.env.S', /not closed/],
    [
      'a template over 16 kB',
      step(`env: {S: ${'x'.repeat(8000)}, T: ${'y'.repeat(8100)}, U: ${'z'.repeat(500)}}`),
      'steps.sim',
      /at most 16 kB/,
    ],
    [
      'a site rule with blanks',
      `${HEAD}sites: {deny: [a b]}\nsteps: {a: {command: [x]}}`,
      'sites.deny[0]',
      /site name/,
    ],
    ['a deadline that is no time', `${HEAD}deadline: tomorrow\nsteps: {a: {command: [x]}}`, 'deadline', /time such as/],
  ])('%s', (_what, text, path, expected) => {
    const found = problems(text)
    expect(found.map((problem) => problem.path)).toContain(path)
    expect(found.find((problem) => problem.path === path)!.message).toMatch(expected)
  })

  test('all problems at once, in the order of the file, with line and column', () => {
    const found = problems(step('resources: {memory: 4, core: 1}\ncuont: 3'))
    expect(found.map((problem) => problem.path)).toEqual([
      'steps.sim.resources.memory',
      'steps.sim.resources.core',
      'steps.sim.cuont',
    ])
    expect(found[0]).toMatchObject({ line: 8, column: 25 })
    expect(found[2]).toMatchObject({ line: 9, column: 5 })
    expect(problemLine('sim.yaml', found[0]!)).toMatch(
      /^sim\.yaml:8:25 {2}steps\.sim\.resources\.memory: expected a size/,
    )
  })

  test('steps that wait for each other are shown as a circle', () => {
    const found = problems(
      `${HEAD}steps:\n  a: {command: [x], after: b}\n  b: {command: [x], after: c}\n  c: {command: [x], after: a}\n`,
    )
    expect(found).toHaveLength(1)
    expect(found[0]!.message).toContain('a -> b -> c -> a')
  })

  test.each([
    ['text that is no YAML', 'steps: [a\nb: {', /not YAML/],
    ['the same key twice', `${HEAD}name: b\nsteps: {a: {command: [x]}}`, /not YAML/],
    ['aliases that unfold without end', bomb(), /not readable|expected/],
    ['a megabyte', 'x'.repeat(1024 * 1024 + 1), /over 1 MiB/],
    ['nesting without end', `a: ${'['.repeat(5000)}`, /./],
    ['nothing', '', /./],
    ['a list', '- 1', /map of keys/],
  ])('%s', (_what, text, expected) => {
    expect(problems(text)[0]!.message).toMatch(expected)
  })

  test.each([
    ['a column of a built-in name', 'runs.csv', 'index,a\n1,2\n', /built in/],
    ['a column twice', 'runs.csv', 'a,a\n1,2\n', /twice/],
    ['a row too short', 'runs.csv', 'a,b\n1\n', /runs\.csv/],
    ['no rows', 'runs.csv', 'a,b\n', /at least one row/],
    ['a row over 4 kB', 'runs.csv', `a\n${'x'.repeat(5000)}\n`, /line 2: a row of/],
    ['a line that is no object', 'runs.jsonl', '{"a":1}\n[2]\n', /line 2: expected one JSON object/],
    ['other keys than the first line', 'runs.jsonl', '{"a":1}\n{"b":1}\n', /line 2: expected the keys/],
  ])('a table with %s', (_what, name, table, expected) => {
    const found = problems(step(`table: ${name}`), { [name]: table })
    expect(found[0]).toMatchObject({ path: 'steps.sim.table', message: expect.stringMatching(expected) })
  })
})

describe('campaign file - what becomes of it', () => {
  const text = `${HEAD}priority: 5
sites: {allow: [B, A]}
steps:
  sim:
    sweep: {T: [1, 2.0], seed: 1..3}
    command: [sim, --T, $(T), --seed, $(seed), --price, "$$(x)", 1.50]
    resources: {cores: 2, memory: 500MB, walltime: 1h30m}
    retries: {payload: 1, hold_exit_codes: [2]}
    outputs: [{path: m.json}]
  merge:
    after: {step: sim, accept: 98%}
    command: [merge, list.txt]
    inputs: [{from: sim, path: in/, list: list.txt}]
`

  test('quantities, defaults and sizes', () => {
    const { steps, id } = plan(text)
    expect(id).toMatch(/^c[a-z2-7]{10}$/)
    expect(steps.map((one) => [one.name, one.size])).toEqual([
      ['sim', 6],
      ['merge', 1],
    ])
    expect(steps[0]!.needs).toMatchObject({
      cores: 2,
      memoryBytes: 500e6,
      walltimeMs: 5_400_000,
      runtime: 'host',
      allowSites: ['A', 'B'],
      group: '/vo.example/prod',
    })
    expect(steps[0]!.retries).toEqual({ payload: 1, infrastructure: 10, holdExitCodes: [2], exhausted: 'failed' })
    expect(steps[1]!.after).toEqual([{ step: 'sim', accept: 0.98 }])
    expect(steps[1]!.template.inputs[0]).toMatchObject({ from: 'sim', output: 'm.json', path: 'in/', list: 'list.txt' })
  })

  test('arguments keep the spelling they were written with', () => {
    const { template } = plan(text).steps[0]!
    const last = valuesOf(template, { tasks: '0-5', rows: null }, 5)
    expect(template.command.map((argument) => expand(argument, last))).toEqual([
      'sim',
      '--T',
      '2.0',
      '--seed',
      '3',
      '--price',
      '$(x)',
      '1.50',
    ])
  })

  test('the same content has the same digest, whatever its comments, other content another', () => {
    const original = plan(text)
    expect(plan(`# hello\n${text}`).digest).toBe(original.digest)
    expect(plan(text.replace('1..3', '1..4')).digest).not.toBe(original.digest)
    expect(plan(text.replace('1..3', '1..4')).id).toBe(original.id)
    expect(plan(text.replace('/prod', '/test')).id).not.toBe(original.id)
  })

  test('steps of equal needs share a match class', () => {
    const [sim, merge] = plan(
      `${HEAD}steps:\n  a: {command: [x]}\n  b: {command: [y], resources: {memory: 1GiB}}\n`,
    ).steps
    expect(sim!.matchClass).toMatch(/^[0-9a-f]{12}$/)
    expect(sim!.matchClass).toBe(merge!.matchClass)
  })

  test('a table gives a task per row, with its columns as names', () => {
    const file = step('table: runs.csv\nenv: {R: $(run)}')
    const { rows, size } = plan(file, { 'runs.csv': 'run,energy\n007,13.6\n008,14\n' }).steps[0]!
    expect([size, rows]).toEqual([
      2,
      [
        { run: '007', energy: '13.6' },
        { run: '008', energy: '14' },
      ],
    ])
    expect(tablesNamed(file)).toEqual(['runs.csv'])
    expect(plan(step('table: r.jsonl'), { 'r.jsonl': '{"run": 7}\n{"run": "x"}\n' }).steps[0]!.rows).toEqual([
      { run: '7' },
      { run: 'x' },
    ])
  })

  test('YAML 1.2: words that were booleans and times once are text', () => {
    const { command } = plan(`${HEAD}steps: {a: {command: [on, NO, 12:00:00, true]}}`).steps[0]!.template
    expect(command).toEqual(['on', 'NO', '12:00:00', 'true'])
  })
})

function bomb(): string {
  const levels = [...'abcdefgh'].map(
    (name, i, all) => `${name}: &${name} [${i === 0 ? 'x' : `*${all[i - 1]}, `.repeat(9)}]`,
  )
  return levels.join('\n')
}
