/** The rows of a table: a .csv with a header line, or a .jsonl with one object a line. Every value becomes text. */
import { parse } from 'csv-parse/sync'
import { BUILT_IN_NAMES } from '../../shared/expand.ts'
import { bundleBodySchema } from '../../shared/protocol/work.ts'
import { MAX_CELLS, MAX_ROW_BYTES, MAX_ROWS, NAME, NOT_A_NAME } from './format.ts'

/** Of one table; larger ones wait for a later version. */
export const MAX_TABLE_BYTES = 16 * 1024 * 1024
const MAX_COLUMNS = 200
/** Of one line; a row as data is bounded more tightly. */
const MAX_LINE = 64 * 1024

type Row = Record<string, string>

/** The rows and how many bytes they take as data, or what is wrong in words (with the line where there is one). */
export type Table = { rows: Row[]; bytes: number } | { wrong: string[] }

/** Each of the tables by the name that the file gives it, read when first asked for; undefined where it is not there. */
export function openTables(texts: Readonly<Record<string, string>>): (name: string) => Table | undefined {
  const read = new Map<string, Table>()
  return (name) => {
    if (!Object.hasOwn(texts, name)) return undefined
    if (!read.has(name)) read.set(name, readTable(name, texts[name]!))
    return read.get(name)
  }
}

function readTable(name: string, text: string): Table {
  if (Buffer.byteLength(text) > MAX_TABLE_BYTES) return { wrong: [`${name} is over 16 MiB: not supported yet`] }
  const large = tooLarge(text)
  if (large) return { wrong: [`${name} ${large}`] }
  if (text.includes('\0')) return { wrong: [`${name}: expected text without NUL characters`] }
  const read = name.endsWith('.csv') ? readCsv(name, text) : readJsonLines(name, text)
  if ('wrong' in read) return read
  const { rows } = read
  const sizes = rows.map((row) => Buffer.byteLength(JSON.stringify(row)))
  const wrong = [...wrongColumns(name, read.columns), ...wrongRows(name, read, sizes)]
  if (wrong.length > 0) return { wrong }
  const wire = bundleBodySchema.shape.rows.safeParse(rows)
  if (wire.success) return { rows, bytes: sizes.reduce((sum, size) => sum + size, 0) }
  return { wrong: wire.error.issues.slice(0, 5).map(({ path, message }) => `row ${Number(path[0]) + 1}: ${message}`) }
}

/** Counted before anything is parsed, so that no table takes more time and memory than its limits allow. */
function tooLarge(text: string): string | undefined {
  let lines = 0
  let commas = 0
  let lineStart = 0
  for (let at = 0; at < text.length; at++) {
    const code = text.charCodeAt(at)
    if (code === 44 && ++commas > MAX_CELLS) return `has more than ${MAX_CELLS} cells`
    if (code === 10 || code === 13) lineStart = at + 1
    else if (at === lineStart && ++lines > MAX_ROWS + 1) {
      return `has more than ${MAX_ROWS} rows: expected at most ${MAX_ROWS} in this release`
    } else if (at - lineStart > MAX_LINE) return `line ${lines}: expected at most ${MAX_LINE} characters`
  }
  return undefined
}

interface Rows {
  columns: string[]
  rows: Row[]
  /** The line of each row up to this one. */
  linesTo(at: number): number[]
}
type Read = Rows | { wrong: string[] }

function readCsv(name: string, text: string): Read {
  const options = { bom: true, skip_empty_lines: true, trim: true } as const
  let records: string[][]
  try {
    records = parse(text, options)
  } catch (error) {
    return { wrong: [`${name}: ${error instanceof Error ? error.message : String(error)}`] }
  }
  const columns = records[0]
  if (!columns) return { wrong: [`${name}: expected a header line with the column names`] }
  const wrong = wrongColumns(name, columns)
  if (wrong.length > 0) return { wrong }
  return {
    columns,
    rows: records.slice(1).map((record) => Object.fromEntries(columns.map((column, i) => [column, record[i] ?? '']))),
    // Places are asked for only where something is wrong: read again up to there.
    linesTo: (at) =>
      (parse(text, { ...options, info: true, to: at + 2 }) as { info?: { lines: number } }[])
        .slice(1)
        .map(({ info }) => info!.lines),
  }
}

function readJsonLines(name: string, text: string): Read {
  const rows: Row[] = []
  const lines: number[] = []
  const wrong: string[] = []
  let columns: string[] | undefined
  for (const [at, content] of text.split('\n').entries()) {
    if (content.trim() === '') continue
    const line = at + 1
    const row = readJsonRow(content)
    if (!row) {
      wrong.push(`${name} line ${line}: expected one JSON object whose values are text, numbers or booleans`)
    } else {
      columns ??= Object.keys(row)
      if (Object.keys(row).sort().join('\0') !== [...columns].sort().join('\0')) {
        wrong.push(`${name} line ${line}: expected the keys of the first line: ${columns.join(', ')}`)
      }
      rows.push(row)
      lines.push(line)
    }
    if (wrong.length >= 20) break
  }
  return wrong.length > 0 ? { wrong } : { columns: columns ?? [], rows, linesTo: () => lines }
}

function readJsonRow(content: string): Row | undefined {
  let value: unknown
  try {
    value = JSON.parse(content)
  } catch {
    return undefined
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return undefined
  const entries = Object.entries(value)
  if (entries.some(([, cell]) => !['string', 'number', 'boolean'].includes(typeof cell))) return undefined
  return Object.fromEntries(entries.map(([key, cell]) => [key, String(cell)]))
}

function wrongColumns(name: string, columns: string[]): string[] {
  if (columns.length > MAX_COLUMNS) return [`${name}: expected at most ${MAX_COLUMNS} columns`]
  const wrong = columns
    .filter((column) => !NAME.test(column) || NOT_A_NAME.includes(column))
    .map(
      (column) =>
        `${name}: column "${column.slice(0, 60)}": expected letters, digits and _, and none of ${NOT_A_NAME.join(', ')}`,
    )
  const taken = columns.filter((column) => (BUILT_IN_NAMES as readonly string[]).includes(column))
  wrong.push(...taken.map((column) => `${name}: column ${column}: expected another name, this one is built in`))
  const repeated = columns.filter((column, at) => columns.indexOf(column) !== at)
  wrong.push(...repeated.map((column) => `${name}: column ${column} is there twice`))
  return wrong
}

function wrongRows(name: string, { rows, linesTo }: Rows, sizes: readonly number[]): string[] {
  if (rows.length === 0) return [`${name}: expected at least one row`]
  const wrong: { at: number; what: string }[] = []
  for (const [at, row] of rows.entries()) {
    const isNul = Object.values(row).some((cell) => cell.includes('\0'))
    if (isNul) wrong.push({ at, what: 'expected text without NUL characters' })
    if (sizes[at]! > MAX_ROW_BYTES) wrong.push({ at, what: `a row of ${sizes[at]} bytes; expected at most 4 kB` })
    if (wrong.length >= 20) break
  }
  if (wrong.length === 0) return []
  const lines = linesTo(wrong.at(-1)!.at)
  return wrong.map(({ at, what }) => `${name} line ${lines[at]}: ${what}`)
}
