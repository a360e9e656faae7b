/** The rows of a table: a .csv with a header line, or a .jsonl with one object a line. Every value becomes text. */
import { parse } from 'csv-parse/sync'
import { BUILT_IN_NAMES } from '../../shared/expand.ts'
import { MAX_ROW_BYTES, NAME } from './format.ts'

/** All tables of one submission together; larger ones wait for a later version. */
export const MAX_TABLE_BYTES = 16 * 1024 * 1024
const MAX_COLUMNS = 200

type Row = Record<string, string>

/** @returns the rows, or what is wrong in words (with the line where there is one) */
export function readTable(name: string, text: string): { rows: Row[] } | { wrong: string[] } {
  if (Buffer.byteLength(text) > MAX_TABLE_BYTES) return { wrong: [`${name} is over 16 MiB: not supported yet`] }
  const read = name.endsWith('.csv') ? readCsv(name, text) : readJsonLines(name, text)
  if ('wrong' in read) return read
  const wrong = [...wrongColumns(name, read.columns), ...wrongRows(name, read.rows)]
  return wrong.length > 0 ? { wrong } : { rows: read.rows.map(({ row }) => row) }
}

type Read = { columns: string[]; rows: { row: Row; line: number }[] } | { wrong: string[] }

function readCsv(name: string, text: string): Read {
  let records: { record: string[]; info: { lines: number } }[]
  try {
    records = parse(text, { bom: true, skip_empty_lines: true, trim: true, info: true }) as never
  } catch (error) {
    return { wrong: [`${name}: ${error instanceof Error ? error.message : String(error)}`] }
  }
  const [header, ...body] = records
  if (!header) return { wrong: [`${name}: expected a header line with the column names`] }
  const columns = header.record
  return {
    columns,
    rows: body.map(({ record, info }) => ({
      row: Object.fromEntries(columns.map((column, i) => [column, record[i] ?? ''])),
      line: info.lines,
    })),
  }
}

function readJsonLines(name: string, text: string): Read {
  const rows: { row: Row; line: number }[] = []
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
      rows.push({ row, line })
    }
    if (wrong.length >= 20) break
  }
  return wrong.length > 0 ? { wrong } : { columns: columns ?? [], rows }
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
  const wrong = columns
    .filter((column) => !NAME.test(column))
    .map((column) => `${name}: column "${column.slice(0, 60)}": expected letters, digits and _`)
  const taken = columns.filter((column) => (BUILT_IN_NAMES as readonly string[]).includes(column))
  wrong.push(...taken.map((column) => `${name}: column ${column}: expected another name, this one is built in`))
  const repeated = columns.filter((column, at) => columns.indexOf(column) !== at)
  wrong.push(...repeated.map((column) => `${name}: column ${column} is there twice`))
  if (columns.length > MAX_COLUMNS) wrong.push(`${name}: expected at most ${MAX_COLUMNS} columns`)
  return wrong
}

function wrongRows(name: string, rows: { row: Row; line: number }[]): string[] {
  if (rows.length === 0) return [`${name}: expected at least one row`]
  const wrong: string[] = []
  for (const { row, line } of rows) {
    const bytes = Buffer.byteLength(JSON.stringify(row))
    if (bytes > MAX_ROW_BYTES) wrong.push(`${name} line ${line}: a row of ${bytes} bytes; expected at most 4 kB`)
    if (wrong.length >= 20) break
  }
  return wrong
}
