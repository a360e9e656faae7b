import { readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { expect, test } from 'vitest'

const checkout = resolve(import.meta.dirname, '../..')
const page = readFileSync(join(checkout, 'docs/reliability.md'), 'utf8')

test('reliability page - every promise names tests, and each of them is there under that title', () => {
  const promises = page
    .slice(page.indexOf('## Promises'), page.indexOf('## The suite'))
    .split('\n')
    .filter((line) => line.startsWith('| ') && !line.startsWith('| promise'))
  expect(promises.length).toBeGreaterThan(8)
  for (const row of promises) {
    const named = [...row.matchAll(/`([^`]+\.test\.ts)` "([^"]+)"/g)]
    expect(named.length, row).toBeGreaterThan(0)
    for (const [, file, title] of named) {
      expect(readFileSync(join(checkout, file!), 'utf8').includes(title!), `${file}: ${title}`).toBe(true)
    }
  }
})
