/** Against real servers on loopback, which is private: what they serve is fetched only where it is named. */
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { systemClock } from '../shared/clock.ts'
import { IndraftError } from '../shared/errors.ts'
import type { Room } from '../shared/files/room.ts'
import { silentLog } from '../shared/log.ts'
import { isPublicAddress, Outside, type OutsideOptions } from './outside.ts'

let folder: string
let server: Server
let asked: string[]
let answer: (request: IncomingMessage, response: ServerResponse) => void
const made: Outside[] = []

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-outside-'))
  asked = []
  answer = (_, response) => void response.end('content')
  server = createServer((request, response) => {
    asked.push(request.url ?? '')
    answer(request, response)
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
})
afterEach(async () => {
  for (const one of made.splice(0)) await one.close()
  server.closeAllConnections()
  await new Promise((resolve) => server.close(resolve))
  rmSync(folder, { recursive: true, force: true })
})

const port = () => (server.address() as AddressInfo).port
const at = (path: string, host = '127.0.0.1') => `http://${host}:${port()}${path}`
const target = () => join(folder, 'file')

/** Room for some bytes, then none. */
function filling(): Room {
  let left = 5
  const take = (bytes: number) => {
    left -= bytes
    if (left < 0) throw new IndraftError('store.full')
  }
  return { claim: async () => ({ take, end: () => {} }) }
}

async function fetchIt(url: string, fetchFrom: string[], more: Partial<OutsideOptions> = {}, maxBytes = 1000) {
  const patience = { answerMs: 20_000, giveUpMs: 0 }
  const options = { fetchFrom, fetchTimeMs: 60_000, patience, clock: systemClock, log: silentLog, ...more }
  const outside = new Outside(options)
  made.push(outside)
  await outside.fetch(new URL(url), null, target(), maxBytes)
}

describe('where to', () => {
  test.each([
    '127.0.0.1',
    '2130706433',
    '0x7f.1',
    '0.0.0.0',
    'localhost',
    '[::1]',
    '[::]',
    '[::ffff:127.0.0.1]',
    '[64:ff9b::7f00:1]',
  ])('outside - %s is this machine, and not asked', async (host) => {
    await expect(fetchIt(at('/', host), [])).rejects.toMatchObject({ code: 'policy.refused' })
    expect(asked).toEqual([])
  })

  test.each([
    ['10.1.2.3', false],
    ['100.64.0.1', false],
    ['169.254.169.254', false],
    ['172.31.255.255', false],
    ['192.168.0.1', false],
    ['224.0.0.1', false],
    ['fd00::1', false],
    ['fe80::1', false],
    ['::ffff:10.0.0.1', false],
    ['2002:7f00:1::', false],
    ['8.8.8.8', true],
    ['172.32.0.1', true],
    ['2606:4700::1111', true],
    ['not an address', false],
  ])('outside - %s public: %s', (address, isPublic) => {
    expect(isPublicAddress(address)).toBe(isPublic)
  })

  test('outside - what is named is fetched, also where it is private, and nothing beside it', async () => {
    await fetchIt(at('/images/a'), [at('/images')])
    expect(readFileSync(target(), 'utf8')).toBe('content')
    for (const [url, named] of [
      [at('/images-of-others/a'), at('/images')],
      [at('/images/../secret'), at('/images')],
      [at('/a'), 'http://127.0.0.1/'],
      [at('/a'), 'https://example.org/'],
    ] as const) {
      await expect(fetchIt(url, [named]), url).rejects.toMatchObject({ code: 'policy.refused' })
    }
    expect(asked).toEqual(['/images/a'])
  })

  test.each([
    ['to another path of a named host', () => at('/secret')],
    ['to another name of this machine', () => at('/images/a', 'localhost')],
    ['to a private address', () => 'http://169.254.169.254/latest'],
    ['to a path that looks like another host', () => at('//8.8.8.8/secret')],
  ])('outside - a redirect %s is not followed', async (_, location) => {
    answer = ({ url }, response) => {
      if (url === '/images/a') response.writeHead(302, { location: location() }).end()
      else response.end('secret')
    }
    await expect(fetchIt(at('/images/a'), [at('/images/')])).rejects.toMatchObject({ code: 'policy.refused' })
    expect(asked).toEqual(['/images/a'])
  })

  test('outside - a redirect that stays among what is named is followed, a ring of them is not for ever', async () => {
    answer = ({ url }, response) => {
      if (url === '/images/a') response.writeHead(302, { location: '/images/b' }).end()
      else response.end('content')
    }
    await fetchIt(at('/images/a'), [at('/images/')])
    answer = (_, response) => void response.writeHead(302, { location: '/images/a' }).end()
    asked = []
    await expect(fetchIt(at('/images/a'), [at('/images/')])).rejects.toThrow(/loop/)
    expect(asked.length).toBeLessThan(10)
  })

  test.each(['', 'example.org', 'ftp://example.org/', 'https://user@example.org/'])(
    'outside - "%s" is no beginning of a URL',
    (text) => {
      const build = () => new Outside({ fetchFrom: [text], fetchTimeMs: 1, clock: systemClock, log: silentLog })
      expect(build).toThrow(expect.objectContaining({ code: 'request.invalid' }))
    },
  )
})

describe('servers that misbehave', () => {
  const named = () => [at('/')]
  /** For who never answers: nobody else has to be quick. */
  const impatient = { patience: { answerMs: 100, giveUpMs: 0 } }

  test('outside - one that never answers is given up', async () => {
    answer = () => {}
    await expect(fetchIt(at('/a'), named(), impatient)).rejects.toMatchObject({ code: 'link.timeout' })
  })

  test('outside - one that answers half is given up, and nothing stands under the name', async () => {
    answer = (_, response) => {
      response.writeHead(200, { 'content-length': '100' })
      response.write('half', () => response.destroy())
    }
    await expect(fetchIt(at('/a'), named())).rejects.toMatchObject({ code: 'link.timeout' })
    expect(existsSync(target())).toBe(false)
  })

  /** Each first answer is of the next of these and half; a range is of the one that `if-range` names, or of the last. */
  function half(versions: string[], tag: (version: number) => Record<string, string>): (string | undefined)[] {
    const ranges: (string | undefined)[] = []
    const answers = versions.map((text, version) => ({ text, tag: tag(version) }))
    let next = 0
    answer = ({ headers }, response) => {
      ranges.push(headers.range)
      const last = answers[Math.min(next, answers.length - 1)]!
      const isSame = headers['if-range'] === undefined || Object.values(last.tag).includes(String(headers['if-range']))
      const start = isSame ? Number(/bytes=(\d+)-/.exec(headers.range ?? '')?.[1] ?? 0) : 0
      const range = { 'content-range': `bytes ${start}-${last.text.length - 1}/${last.text.length}` }
      response.writeHead(start > 0 ? 206 : 200, {
        'content-length': `${last.text.length - start}`,
        ...last.tag,
        ...(start ? range : {}),
      })
      const isWhole = start > 0 || next >= answers.length
      next++
      if (isWhole) response.end(last.text.slice(start))
      else response.write(last.text.slice(0, 10), () => setTimeout(() => response.destroy(), 50))
    }
    return ranges
  }

  test('outside - a server that sends a part of another version, whatever it was asked, is asked for the whole', async () => {
    half(['the first version', 'another one that came meanwhile'], (version) => ({ etag: `"${version}"` }))
    const honest = answer
    answer = (request, response) => {
      delete request.headers['if-range']
      honest(request, response)
    }
    await fetchIt(at('/a'), named(), { patience })
    expect(readFileSync(target(), 'utf8')).toBe('another one that came meanwhile')
  })

  const patience = { answerMs: 20_000, giveUpMs: 30_000 }
  const whole = 'what comes in two parts'

  test.each([
    ['a tag', () => ({ etag: '"1"' })],
    ['a date', () => ({ 'last-modified': 'Thu, 01 Jan 2026 00:00:00 GMT', date: 'Thu, 01 Jan 2026 00:01:00 GMT' })],
  ])('outside - one that answers half each time is continued where it stopped, known by %s', async (_, tag) => {
    const ranges = half([whole], tag)
    await fetchIt(at('/a'), named(), { patience })
    expect(readFileSync(target(), 'utf8')).toBe(whole)
    expect(ranges).toEqual([undefined, 'bytes=10-'])
  })

  test.each<[string, (version: number) => Record<string, string>]>([
    ['another tag', (version) => ({ etag: `"${version}"` })],
    ['a weak tag', () => ({ etag: 'W/"1"' })],
    [
      'a date just now',
      () => ({ 'last-modified': 'Thu, 01 Jan 2026 00:00:00 GMT', date: 'Thu, 01 Jan 2026 00:00:01 GMT' }),
    ],
    ['no name at all', () => ({})],
  ])('outside - two versions of a file are never mixed: %s', async (_, tag) => {
    half(['the first version', 'another one that came meanwhile'], tag)
    await fetchIt(at('/a'), named(), { patience })
    expect(readFileSync(target(), 'utf8')).toBe('another one that came meanwhile')
  })

  test('outside - one that never stops is stopped by size', async () => {
    answer = (_, response) => {
      const more = () => response.write('x'.repeat(100), () => setTimeout(more, 1).unref())
      more()
    }
    await expect(fetchIt(at('/a'), named())).rejects.toMatchObject({ code: 'file.tooLarge' })
  })

  test.each([
    ['by time', { fetchTimeMs: 100 }, 'file.unreachable'],
    ['by a disk that fills up', { room: filling() }, 'store.full'],
  ])('outside - one that dribbles is stopped %s', async (_, more, code) => {
    answer = (_request, response) => {
      const drip = setInterval(() => response.write('x'), 20)
      response.on('close', () => clearInterval(drip))
    }
    await expect(fetchIt(at('/a'), named(), more, 10 ** 6)).rejects.toMatchObject({ code })
  })
})
