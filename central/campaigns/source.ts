/**
 * The text of a campaign file as values, with the place each was written at. YAML 1.2 only; bounded in size and in
 * what aliases may unfold to. Nothing here knows what the fields mean.
 */
import { isAlias, isMap, isNode, isPair, isScalar, LineCounter, type Node, parseDocument, visit } from 'yaml'

export const MAX_SOURCE_BYTES = 1024 * 1024
const MAX_ALIASES = 100
const MAX_DEPTH = 30

export type FieldPath = readonly (string | number)[]

/** Something wrong with a file: where, and what was expected. */
export interface Problem {
  /** `steps.sim.resources.memory`; empty for the file as a whole. */
  path: string
  message: string
  line: number | null
  column: number | null
}

export interface Source {
  value: unknown
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
  const lines = new LineCounter()
  const document = parseDocument(text, { version: '1.2', lineCounter: lines, prettyErrors: false })
  if (document.errors.length > 0) {
    return {
      problems: document.errors.slice(0, 20).map((error) => {
        const { line, col } = lines.linePos(error.pos[0])
        return { path: '', message: `not YAML: ${error.message}`, line, column: col }
      }),
    }
  }
  let tooDeep = false
  visit(document, (_key, _node, parents) => {
    if (parents.length <= MAX_DEPTH * 2) return undefined
    tooDeep = true
    return visit.BREAK
  })
  if (tooDeep) return whole(`nested more than ${MAX_DEPTH} levels deep`)
  let value: unknown
  try {
    value = document.toJS({ maxAliasCount: MAX_ALIASES })
  } catch (error) {
    return whole(`not readable: ${error instanceof Error ? error.message : String(error)}`)
  }
  const root = document.contents
  return {
    source: {
      value,
      spelling(path) {
        const node = descend(root, path, document).node
        return isScalar(node) && typeof node.source === 'string' ? node.source : undefined
      },
      problem(path, message, key = false) {
        const { node, keyNode } = descend(root, path, document)
        const at = (key ? keyNode : node) ?? node ?? keyNode
        const start = at?.range?.[0]
        const { line, col } = start === undefined ? { line: null, col: null } : lines.linePos(start)
        return { path: formatPath(path), message, line, column: col }
      },
    },
  }

  function descend(
    from: Node | null,
    path: FieldPath,
    within: typeof document,
  ): { node: Node | null; keyNode: Node | null } {
    let node: Node | null = from
    let keyNode: Node | null = null
    for (const part of path) {
      if (isAlias(node)) node = (node.resolve(within) as Node | undefined) ?? null
      if (isMap(node)) {
        const pair = node.items.find(
          (item) => isPair(item) && isScalar(item.key) && String(item.key.value) === String(part),
        )
        if (!pair) break
        keyNode = pair.key as Node
        node = isNode(pair.value) ? pair.value : keyNode
      } else {
        const items = (node as { items?: unknown[] } | null)?.items
        const item = typeof part === 'number' ? items?.[part] : undefined
        if (!isNode(item)) break
        node = item
      }
    }
    return { node, keyNode }
  }
}
