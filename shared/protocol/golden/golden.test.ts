import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { decode } from '../codec.ts'
import { MESSAGES } from '../messages.ts'
import { SPOKEN_VERSIONS } from '../version.ts'
import { readable } from './readable.ts'

const versions = readdirSync(import.meta.dirname).filter((name) => /^v\d+$/.test(name))
const samplesOf = (version: string) =>
  readdirSync(join(import.meta.dirname, version)).flatMap((name) => (name.endsWith('.bin') ? [name.slice(0, -4)] : []))

describe('golden - every version spoken here has samples', () => {
  it('and there are no others', () => {
    expect(versions.sort()).toEqual(SPOKEN_VERSIONS.map((version) => `v${version}`).sort())
  })

  it.each(versions)('%s: every message type has one', (version) => {
    expect(samplesOf(version)).toEqual(expect.arrayContaining(Object.keys(MESSAGES)))
  })
})

describe.each(versions)('golden - %s is still read as it was', (version) => {
  it.each(samplesOf(version))('%s', (name) => {
    const path = join(import.meta.dirname, version, name)
    const expected = JSON.parse(readFileSync(`${path}.json`, 'utf8'))
    const decoded = decode(readFileSync(`${path}.bin`))
    expect(`v${decoded.version}`).toBe(version)
    expect({ type: decoded.type, body: readable(decoded.body) }).toEqual(expected)
  })
})
