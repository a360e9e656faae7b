/**
 * One step of a checked file as a StepPlan: defaults applied, quantities as numbers, sizes counted, and everything that
 * fields of a step say about each other checked. Reports all it finds and goes on.
 */
import { isIndraftError } from '../../shared/errors.ts'
import { axisSize, BUILT_IN_NAMES, expand, namesIn, sweepSize } from '../../shared/expand.ts'
import type { CampaignId, StepName } from '../../shared/ids.ts'
import { parseImageName } from '../../shared/image-name.ts'
import { pack } from '../../shared/protocol/codec.ts'
import {
  type Axis,
  type Input,
  type Needs,
  type Output,
  type TemplateBody,
  templateBodySchema,
} from '../../shared/protocol/work.ts'
import { parseBytes, parseDuration } from '../../shared/quantity.ts'
import { nearestWord } from './form.ts'
import { type CampaignFile, MAX_TASKS, MAX_TEMPLATE_BYTES, type StepFile } from './format.ts'
import { canonicalNeeds, matchClassOf } from './identity.ts'
import type { Retries, StepPlan } from './model.ts'
import type { After } from './order.ts'
import { type FieldPath, formatPath, type Report, type Source } from './source.ts'
import type { Table } from './table.ts'

const GIB = 2 ** 30
const DEFAULT = { memoryBytes: GIB, walltimeMs: 3_600_000, logBytes: 10 * 2 ** 20, payload: 2, infrastructure: 10 }

export interface StepContext {
  file: CampaignFile
  source: Source
  id: CampaignId
  subject: string
  after: readonly After[]
  /** Size of each step, for `from`. */
  sizes: ReadonlyMap<string, number>
  report: Report
}

/** How many tasks a step has, and what tells them apart. */
export interface Spread {
  size: number
  axes: Axis[] | null
  /** The same list for all steps that name the same table. */
  rows: Record<string, string>[] | null
  rowsBytes: number
}

export function readSpread(
  name: string,
  step: StepFile,
  context: Pick<StepContext, 'source' | 'report'> & { table(name: string): Table | undefined },
): Spread {
  const at: FieldPath = ['steps', name]
  const given = (['count', 'sweep', 'table'] as const).filter((key) => step[key] !== undefined)
  if (given.length > 1)
    context.report([...at, given[1]!], `expected only one of count, sweep, table; ${given[0]} is there too`)
  if (step.table !== undefined) {
    const read = context.table(step.table)
    if (read === undefined) {
      context.report([...at, 'table'], `the table ${step.table} was not sent with the campaign`)
      return { size: 1, axes: null, rows: [], rowsBytes: 0 }
    }
    if ('rows' in read) return { size: read.rows.length, axes: null, rows: read.rows, rowsBytes: read.bytes }
    for (const wrong of read.wrong) context.report([...at, 'table'], wrong)
    return { size: 1, axes: null, rows: [], rowsBytes: 0 }
  }
  if (step.sweep === undefined) return { size: step.count ?? 1, axes: null, rows: null, rowsBytes: 0 }
  const axes = Object.entries(step.sweep).map(([axis, values]) =>
    readAxis(axis, values, [...at, 'sweep', axis], context),
  )
  const size = sweepSize(axes)
  if (!Number.isSafeInteger(size)) {
    context.report([...at, 'sweep'], `too many tasks; expected at most ${MAX_TASKS}`)
    return { size: 1, axes, rows: null, rowsBytes: 0 }
  }
  if (size > MAX_TASKS) context.report([...at, 'sweep'], `${size} tasks; expected at most ${MAX_TASKS}`)
  return { size, axes, rows: null, rowsBytes: 0 }
}

function readAxis(
  name: string,
  values: string | (string | number | boolean)[],
  path: FieldPath,
  { source, report }: Pick<StepContext, 'source' | 'report'>,
): Axis {
  if ((BUILT_IN_NAMES as readonly string[]).includes(name)) report(path, `${name} is built in: expected another name`)
  if (typeof values !== 'string')
    return { name, values: values.map((value, i) => spelled(value, [...path, i], source)) }
  const [, from, to, step] = /^(.+?)\.\.(\S+)(?:\s+step\s+(.+))?$/.exec(values)!
  const range = { from: Number(from), to: Number(to), step: step === undefined ? 1 : Number(step) }
  const axis: Axis = { name, values: range }
  if (!Object.values(range).every((number) => Math.abs(number) <= Number.MAX_SAFE_INTEGER)) {
    report(path, `expected a range of numbers up to ${Number.MAX_SAFE_INTEGER}`)
    return { name, values: [from!] }
  }
  if (axisSize(axis) === 0) report(path, `the range ${values} has no values`)
  return axis
}

/** Text as it was written: `2.0` stays `2.0`. */
function spelled(value: string | number | boolean, path: FieldPath, source: Source): string {
  return typeof value === 'string' ? value : (source.spelling(path) ?? String(value))
}

export function planStep(name: string, step: StepFile, spread: Spread, context: StepContext): StepPlan {
  const { file, source, report, id, subject, after } = context
  const at: FieldPath = ['steps', name]
  const defaults = file.defaults ?? {}
  const image = step.image ?? defaults.image
  const imageAt: FieldPath =
    step.image === undefined && defaults.image !== undefined ? ['defaults', 'image'] : [...at, 'image']
  const known = image === undefined ? `is missing: ${parseImageName('')}` : parseImageName(image)
  if (typeof known === 'string') report(imageAt, known)
  const needs = needsOf(step, file, image)
  if (step.resources?.gpu_memory !== undefined && needs.gpus === 0) {
    report([...at, 'resources', 'gpu_memory'], 'without gpus: expected gpus of at least 1')
  }
  const command = step.command.map((part, i) => spelled(part, [...at, 'command', i], source))
  const env = { ...envOf(defaults.env, ['defaults', 'env'], source), ...envOf(step.env, [...at, 'env'], source) }
  const stalled = step.stalled_after ?? defaults.stalled_after
  const logLimit = step.log_limit ?? defaults.log_limit
  const template: TemplateBody = {
    kind: 'template',
    campaign: id,
    campaignName: file.name,
    step: name,
    group: file.group,
    subject,
    image: image ?? 'host',
    command,
    env,
    axes: spread.axes,
    inputs: planInputs(name, step, context),
    outputs: planOutputs(name, step, spread, context),
    needs,
    logBytes: logLimit === undefined ? DEFAULT.logBytes : parseBytes(logLimit)!,
    stalledAfterMs: stalled === undefined ? null : parseDuration(stalled)!,
    secrets: [],
    ...softwareOf(step, file),
  }
  const bytes = pack(template).length
  if (bytes > MAX_TEMPLATE_BYTES) {
    report(at, `the step takes ${bytes} bytes; expected at most 16 kB: put long lists into a table`)
  }
  checkNames(at, template, spread, report)
  // What is accepted here is what relays and pilots accept: the same schema judges both.
  for (const issue of templateBodySchema.safeParse(template).error?.issues.slice(0, 5) ?? []) {
    report(at, `${formatPath(issue.path as FieldPath)} cannot be sent: ${issue.message}`)
  }
  return {
    name: name as StepName,
    size: spread.size,
    template,
    needs,
    matchClass: matchClassOf(needs),
    rows: spread.rows,
    after: [...after],
    retries: retriesOf(step, file),
  }
}

function needsOf(step: StepFile, file: CampaignFile, image: string | undefined): Needs {
  const resources = { ...file.defaults?.resources, ...step.resources }
  const names = softwareNames(softwareOf(step, file))
  const bytes = (text: string | undefined, otherwise: number) => (text === undefined ? otherwise : parseBytes(text)!)
  return canonicalNeeds({
    cores: resources.cores ?? 1,
    memoryBytes: bytes(resources.memory, DEFAULT.memoryBytes),
    scratchBytes: bytes(resources.scratch, 0),
    gpus: resources.gpus ?? 0,
    gpuMemoryBytes: bytes(resources.gpu_memory, 0),
    walltimeMs: resources.walltime === undefined ? DEFAULT.walltimeMs : parseDuration(resources.walltime)!,
    arch: step.arch ?? file.defaults?.arch ?? [],
    network: step.network ?? file.defaults?.network ?? 'none',
    runtime: image === undefined || image === 'host' ? 'host' : 'container',
    allowSites: file.sites?.allow ?? [],
    denySites: file.sites?.deny ?? [],
    group: file.group,
    ...(names.length > 0 ? { software: names } : {}),
  })
}

/** Nothing where nothing is asked for: templates of before stay as they were. */
function softwareOf(step: StepFile, file: CampaignFile): Pick<TemplateBody, 'software'> {
  const wanted = { ...file.defaults?.software, ...step.software }
  if (!wanted.cvmfs?.length && !wanted.eessi) return {}
  const eessi = wanted.eessi ? { version: wanted.eessi.version, modules: wanted.eessi.modules ?? [] } : null
  return { software: { cvmfs: wanted.cvmfs ?? [], eessi } }
}

/** As nodes name what they have (NodeFacts). */
function softwareNames({ software }: Pick<TemplateBody, 'software'>): string[] {
  const names = software?.cvmfs.map((repository) => `cvmfs:${repository}`) ?? []
  return software?.eessi ? [...names, `eessi:${software.eessi.version}`] : names
}

function retriesOf(step: StepFile, file: CampaignFile): Retries {
  const retries = { ...file.defaults?.retries, ...step.retries }
  return {
    payload: retries.payload ?? DEFAULT.payload,
    infrastructure: retries.infrastructure ?? DEFAULT.infrastructure,
    holdExitCodes: retries.hold_exit_codes ?? [],
    exhausted: retries.exhausted === 'hold' ? 'held' : 'failed',
  }
}

function envOf(env: Record<string, string | number | boolean> | undefined, path: FieldPath, source: Source) {
  return Object.fromEntries(
    Object.entries(env ?? {}).map(([name, value]) => [name, spelled(value, [...path, name], source)]),
  )
}

function planInputs(name: string, step: StepFile, context: StepContext): Input[] {
  const paths = new Set<string>()
  return (step.inputs ?? []).map((input, i) => {
    const at: FieldPath = ['steps', name, 'inputs', i]
    if ((input.url === undefined) === (input.from === undefined))
      context.report(at, 'expected exactly one of url, from')
    if (paths.has(input.path)) context.report([...at, 'path'], `"${input.path}" is another input's path`)
    paths.add(input.path)
    if (input.url !== undefined) {
      if (!/^(file:\/\/\/|https?:\/\/|\$\()/.test(input.url)) {
        const scheme = /^[a-z0-9+]+:/i.exec(input.url)?.[0]
        context.report(
          [...at, 'url'],
          `${scheme ? `${scheme} is not supported yet: ` : ''}expected file:///path or http(s)://...`,
        )
      }
      if (input.path.endsWith('/')) context.report([...at, 'path'], 'expected a file: a folder goes with `from` only')
    }
    for (const key of ['output', 'list'] as const) {
      if (input[key] !== undefined && input.from === undefined)
        context.report([...at, key], 'expected only together with from')
    }
    return {
      url: input.url ?? null,
      from: input.from ?? null,
      output: input.from === undefined ? null : earlierOutput(input as typeof input & { from: string }, at, context),
      path: input.path,
      list: input.list ?? null,
      checksum: input.checksum ?? null,
    }
  })
}

/** Which output of the earlier step is meant; null after a report. */
function earlierOutput(
  input: { from: string; output?: string | undefined; path: string },
  at: FieldPath,
  { file, after, sizes, report }: StepContext,
): string | null {
  if (!after.some(({ step }) => step === input.from)) {
    const known = after.map(({ step }) => step).join(', ') || 'none'
    report([...at, 'from'], `"${input.from}" is not among the steps of after (${known})`)
    return null
  }
  const outputs = (file.steps[input.from]?.outputs ?? []).map((output) => output.path)
  const wanted = input.output ?? (outputs.length === 1 ? outputs[0] : outputs.find((path) => path === input.path))
  if (wanted === undefined || !outputs.includes(wanted)) {
    const list = outputs.join(', ') || 'none'
    report(
      [...at, input.output === undefined ? 'from' : 'output'],
      `expected output: one of the outputs of ${input.from} (${list})`,
    )
    return null
  }
  if (namesIn(wanted).length > 0)
    report([...at, 'output'], `an output with $(...) in its path cannot be an input yet: ${wanted}`)
  const size = sizes.get(input.from) ?? 1
  if (!input.path.endsWith('/') && size > 1) {
    report([...at, 'path'], `expected a folder, as in "in/": ${input.from} has ${size} tasks with a file each`)
  }
  return wanted
}

function planOutputs(name: string, step: StepFile, spread: Spread, { report }: StepContext): Output[] {
  const varying = new Set([
    'index',
    ...(spread.axes ?? []).map((axis) => axis.name),
    ...Object.keys(spread.rows?.[0] ?? {}),
  ])
  const seen = { path: new Set<string>(), url: new Set<string>() }
  return (step.outputs ?? []).map((output, i) => {
    const at: FieldPath = ['steps', name, 'outputs', i]
    for (const key of ['path', 'url'] as const) {
      const value = output[key]
      if (value === undefined) continue
      if (seen[key].has(value)) report([...at, key], `"${value}" is another output's ${key}`)
      seen[key].add(value)
    }
    if (output.path.endsWith('/')) report([...at, 'path'], 'expected a file: folders as outputs are not supported yet')
    if (output.url !== undefined) {
      if (!output.url.startsWith('file:///')) {
        const scheme = /^[a-z0-9+]+:/i.exec(output.url)?.[0]
        report(
          [...at, 'url'],
          `${scheme ? `${scheme} is not supported yet: ` : ''}expected file:///path, or no url to let the centre keep it`,
        )
      } else if (output.url.split('/').includes('..')) {
        report([...at, 'url'], 'expected a path without ..')
      }
      if (spread.size > 1 && !namesIn(output.url).some((used) => varying.has(used))) {
        report(
          [...at, 'url'],
          `all ${spread.size} tasks would write the same file: expected $(index) or another name in it`,
        )
      }
    }
    return { path: output.path, url: output.url ?? null, optional: output.optional ?? false }
  })
}

/** Every `$(name)` must have a value in every task. */
function checkNames(at: FieldPath, template: TemplateBody, spread: Spread, report: StepContext['report']): void {
  const known = [
    ...(spread.axes ?? []).map((axis) => axis.name),
    ...Object.keys(spread.rows?.[0] ?? {}),
    ...BUILT_IN_NAMES,
  ]
  const values = Object.fromEntries(known.map((name) => [name, '']))
  const texts: [FieldPath, string | null][] = [
    ...template.command.map((text, i): [FieldPath, string] => [['command', i], text]),
    ...Object.entries(template.env).map(([name, text]): [FieldPath, string] => [['env', name], text]),
    ...template.inputs.flatMap((input, i): [FieldPath, string | null][] => [
      [['inputs', i, 'url'], input.url],
      [['inputs', i, 'path'], input.path],
    ]),
    ...template.outputs.flatMap((output, i): [FieldPath, string | null][] => [
      [['outputs', i, 'path'], output.path],
      [['outputs', i, 'url'], output.url],
    ]),
  ]
  for (const [path, text] of texts) {
    if (text === null) continue
    const unknown = namesIn(text).filter((name) => !Object.hasOwn(values, name))
    for (const name of unknown) {
      report([...at, ...path], () => {
        const nearest = nearestWord(name, known)
        return `$(${name.slice(0, 60)}) is not known here: ${nearest ? `did you mean $(${nearest})?` : `there are ${known.join(', ')}`}`
      })
    }
    if (unknown.length > 0) continue
    try {
      expand(text, values)
    } catch (error) {
      if (!isIndraftError(error)) throw error
      report([...at, ...path], error.message)
    }
  }
}
