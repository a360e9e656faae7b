import { expect, test } from 'vitest'
import { resolveFileUrls } from './file-urls.ts'

test('file urls - relative ones become absolute beside the campaign file, and nothing else changes', () => {
  const source = [
    '# comment',
    'steps:',
    '  a:',
    '    inputs:',
    '      - {url: "file:run me.mjs", path: x}   # relative',
    '      - url: file:data/$(index).csv',
    '        path: y',
    '      - {url: "file:///already/absolute", path: z}',
    '      - {url: "https://example.org/a", path: w}',
    '    command: [echo, "file:not-an-url"]',
    '',
  ].join('\n')
  expect(resolveFileUrls(source, '/data/campaigns/c.yaml')).toBe(
    source
      .replace('"file:run me.mjs"', '"file:///data/campaigns/run%20me.mjs"')
      .replace('file:data/$(index).csv', '"file:///data/campaigns/data/$(index).csv"'),
  )
})

test('file urls - what is not YAML is left for central to refuse', () => {
  expect(resolveFileUrls('a: [', '/x.yaml')).toBe('a: [')
})
