/**
 * Input addresses as people write them in a campaign file, `file:name`, relative to the file. Central knows nothing of
 * the submitter's folders, so the command turns them into `file:///absolute/name` before anything is sent; the rest of
 * the text stays as it is, comments and lines included.
 */
import { dirname, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { isScalar, parseDocument, visit } from 'yaml'

/** A text that is not YAML is returned as it is: central says what is wrong with it. */
export function resolveFileUrls(source: string, campaignPath: string): string {
  const document = parseDocument(source, { version: '1.2' })
  if (document.errors.length > 0) return source
  const folder = dirname(resolve(campaignPath))
  const places: { from: number; to: number; url: string }[] = []
  visit(document, {
    Pair(_, { key, value }) {
      if (!isScalar(key) || key.value !== 'url' || !isScalar(value) || typeof value.value !== 'string') return undefined
      const relative = /^file:(?!\/)(.+)$/.exec(value.value)?.[1]
      if (relative === undefined || !value.range) return undefined
      places.push({ from: value.range[0], to: value.range[1], url: pathToFileURL(resolve(folder, relative)).href })
      return undefined
    },
  })
  let text = source
  for (const { from, to, url } of places.sort((a, b) => b.from - a.from)) {
    text = `${text.slice(0, from)}${JSON.stringify(url)}${text.slice(to)}`
  }
  return text
}
