/**
 * The text of a campaign file as values, with the place each was written at. YAML 1.2 only; bounded in size and in
 * what aliases may unfold to. Nothing here knows what the fields mean.
 *
 * Whatever the text, the work stays in proportion to its length: size and nesting are judged on its words before a
 * document is made of them, and the document is walked once, into an index that answers where each field stands.
 */
import { CST, isAlias, isMap, isScalar, isSeq, Lexer, LineCounter, type Node, parseDocument } from 'yaml'
import { NOT_A_NAME } from './format.ts'

export const MAX_SOURCE_BYTES = 1024 * 1024
const MAX_ALIASES = 100
const MAX_DEPTH = 30
const MAX_KEYS = 1000
const MAX_KEY_CHARACTERS = 1000
/** Of the whole file, with what aliases stand for counted each time. */
const MAX_VALUES = 50_000
/** Words, signs, blanks and line ends that are read at all. */
const MAX_TOKENS = 250_000
const MAX_NOT_YAML = 20

export type FieldPath = readonly (string | number)[]

/** Something wrong with a file: where, and what was expected. */
export interface Problem {
  /** `steps.sim.resources.memory`; empty for the file as a whole. */
  path: string
  message: string
  line: number | null
  column: number | null
}

/** The words may be left for later: they are not made where enough is reported already. */
export type Report = (path: FieldPath, message: string | (() => string)) => void

export interface Source {
  value: unknown
  /** Nodes looked at so far; a test holds it in proportion to the file and to what is asked. */
  looked(): number
  /** As written (`2.0`, not 2) where YAML made a number or boolean of it. */
  spelling(path: FieldPath): string | undefined
  /** Of the value, or with `key` of the key before it; the nearest place above where the field is not there. */
  problem(path: FieldPath, message: string, key?: boolean): Problem
}

export function formatPath(path: FieldPath): string {
  return path.reduce<string>(
    (text, part) => (typeof part === 'number' ? `${text}[${part}]` : text === '' ? part : `${text}.${part}`),
    '',
  )
}

export function readSource(text: string): { source: Source } | { problems: Problem[] } {
  const whole = (message: string): { problems: Problem[] } => ({
    problems: [{ path: '', message, line: null, column: null }],
  })
  if (Buffer.byteLength(text) > MAX_SOURCE_BYTES) {
    return whole('the file is over 1 MiB: put long lists into a table (.csv or .jsonl)')
  }
  const tooMuch = scan(text)
  if (tooMuch) return whole(tooMuch)
  const lines = new LineCounter()
  const document = parseDocument(text, { version: '1.2', lineCounter: lines, prettyErrors: false, uniqueKeys: false })
  if (document.errors.length > 0) {
    return {
      problems: document.errors.slice(0, MAX_NOT_YAML).map((error) => {
        const { line, col } = lines.linePos(error.pos[0])
        return { path: '', message: `not YAML: ${error.message}`, line, column: col }
      }),
    }
  }
  const index = new DocumentIndex(lines)
  const root = document.contents
  index.walk(root)
  if (index.problems.length > 0) return { problems: index.problems.slice(0, MAX_NOT_YAML) }
  let value: unknown
  try {
    value = document.toJS({ maxAliasCount: MAX_ALIASES })
  } catch (error) {
    return whole(`not readable: ${error instanceof Error ? error.message : String(error)}`)
  }
  return {
    source: {
      value,
      looked: () => index.steps,
      spelling(path) {
        const { node } = index.find(root, path)
        return isScalar(node) && typeof node.source === 'string' ? node.source : undefined
      },
      problem(path, message, key = false) {
        const { node, keyNode } = index.find(root, path)
        return index.problem((key ? keyNode : node) ?? node ?? keyNode, path, message)
      },
    },
  }
}

/** What is too large or too deep, judged on the words of the text; exact depth is the index's to judge. */
function scan(text: string): string | undefined {
  const columns: number[] = []
  let brackets = 0
  let tokens = 0
  let values = 0
  let column = 0
  let opens = true
  for (const token of new Lexer().lex(text)) {
    if (++tokens > MAX_TOKENS) return 'the file has too many words and signs: put long lists into a table'
    const type = CST.tokenType(token)
    const at = column
    const lineEnd = token.lastIndexOf('\n')
    column = lineEnd < 0 ? column + token.length : token.length - lineEnd - 1
    if (type === 'newline') opens = true
    if (type === null || type === 'newline' || type === 'space' || type === 'comment') continue
    if (
      type === 'scalar' ||
      type === 'comma' ||
      type === 'map-value-ind' ||
      type === 'seq-item-ind' ||
      type === 'alias'
    )
      values += 1
    if (values > MAX_VALUES * 2) return tooManyValues()
    if (type === 'flow-seq-start' || type === 'flow-map-start') brackets += 1
    if (type === 'flow-seq-end' || type === 'flow-map-end') brackets = Math.max(0, brackets - 1)
    if (brackets === 0 && opens) {
      while (columns.length > 0 && columns.at(-1)! >= at) columns.pop()
      columns.push(at)
    }
    opens = brackets === 0 && (type === 'seq-item-ind' || type === 'explicit-key-ind')
    if (columns.length + brackets > MAX_DEPTH + 2) return tooDeep()
  }
  return undefined
}

const tooDeep = () => `nested more than ${MAX_DEPTH} levels`
const tooManyValues = () =>
  `expected at most ${MAX_VALUES} values, aliases counted each time: put long lists into a table`

interface Place {
  node: Node | null
  keyNode: Node | null
}

/** One walk over a document: what no campaign file may hold, and where each field stands. */
class DocumentIndex {
  readonly problems: Problem[] = []
  steps = 0
  readonly #lines: LineCounter
  readonly #maps = new Map<unknown, Map<string, Place>>()
  /** What each alias stands for. */
  readonly #targets = new Map<unknown, Node>()
  /** By anchor: the node and how many values it unfolds to; null while it is being walked. */
  readonly #anchors = new Map<string, { node: Node; values: number | null }>()

  constructor(lines: LineCounter) {
    this.#lines = lines
  }

  problem(node: Node | null, path: FieldPath, message: string): Problem {
    const start = node?.range?.[0]
    const { line, col } = start === undefined ? { line: null, col: null } : this.#lines.linePos(start)
    return { path: formatPath(path), message, line, column: col }
  }

  walk(root: Node | null): void {
    const values = this.#count(root, [], 0)
    if (values > MAX_VALUES && this.problems.length === 0) this.#report(null, [], tooManyValues())
  }

  find(root: Node | null, path: FieldPath): Place {
    let place: Place = { node: root, keyNode: null }
    for (const part of path) {
      this.steps += 1
      const node: Node | null = this.#targets.get(place.node) ?? place.node
      if (isMap(node)) {
        const pair = this.#maps.get(node)?.get(String(part))
        if (!pair) break
        place = { keyNode: pair.keyNode, node: pair.node ?? pair.keyNode }
      } else {
        const item = isSeq(node) && typeof part === 'number' ? (node.items[part] as Node | undefined) : undefined
        if (!item) break
        place = { node: item, keyNode: place.keyNode }
      }
    }
    return place
  }

  /** @returns how many values it unfolds to */
  #count(node: Node | null, path: (string | number)[], depth: number): number {
    this.steps += 1
    if (node === null || this.problems.length >= MAX_NOT_YAML) return 1
    if (isAlias(node)) return this.#countAlias(node, path)
    const anchor = isScalar(node) || isMap(node) || isSeq(node) ? node.anchor : undefined
    if (anchor !== undefined) this.#anchors.set(anchor, { node, values: null })
    let values = 1
    if (isScalar(node)) {
      if (typeof node.value === 'string' && node.value.includes('\0')) {
        this.#report(node, path, 'expected text without NUL characters')
      }
    } else if (depth >= MAX_DEPTH) {
      if (!this.problems.some(({ message }) => message === tooDeep())) this.#report(node, [], tooDeep())
    } else if (isMap(node)) {
      values += this.#countMap(node, path, depth)
    } else if (isSeq(node)) {
      for (const [i, item] of node.items.entries()) values += this.#count(item as Node | null, [...path, i], depth + 1)
    }
    if (anchor !== undefined) this.#anchors.set(anchor, { node, values })
    return values
  }

  #countMap(
    map: Node & { items: { key: unknown; value: unknown }[] },
    path: (string | number)[],
    depth: number,
  ): number {
    if (map.items.length > MAX_KEYS) {
      this.#report(map, path, `${map.items.length} keys; expected at most ${MAX_KEYS}`)
      return 1
    }
    const pairs = new Map<string, Place>()
    this.#maps.set(map, pairs)
    let values = 0
    for (const item of map.items) {
      const keyNode = item.key as Node | null
      if (!isScalar(keyNode) || keyNode.value === null) {
        this.#report(keyNode ?? map, path, 'expected a plain word as key')
        continue
      }
      const key = String(keyNode.value)
      const at = [...path, key.slice(0, MAX_KEY_CHARACTERS)]
      if (key.length > MAX_KEY_CHARACTERS) {
        this.#report(keyNode, path, `a key of ${key.length} characters; expected at most ${MAX_KEY_CHARACTERS}`)
      } else if (NOT_A_NAME.includes(key)) {
        this.#report(keyNode, at, `${key} cannot be a name: expected another`)
      } else if (key.includes('\0')) {
        this.#report(keyNode, path, 'expected a key without NUL characters')
      } else if (pairs.has(key)) {
        this.#report(keyNode, at, 'not YAML: this key is there twice')
      }
      const node = item.value as Node | null
      pairs.set(key, { keyNode, node })
      values += 1 + this.#count(node, at, depth + 1)
    }
    return values
  }

  #countAlias(alias: Node & { source: string }, path: FieldPath): number {
    const anchor = this.#anchors.get(alias.source)
    if (!anchor || anchor.values === null) {
      this.#report(alias, path, `*${alias.source.slice(0, 60)} stands inside what it stands for, or for nothing`)
      return 1
    }
    this.#targets.set(alias, anchor.node)
    return anchor.values
  }

  #report(node: Node | null, path: FieldPath, message: string): void {
    this.problems.push(this.problem(node, path, message))
  }
}
