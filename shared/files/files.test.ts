import { randomBytes } from 'node:crypto'
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { createServer, request, type Server, type ServerResponse } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { IndraftError } from '../errors.ts'
import { silentLog } from '../log.ts'
import { AttemptFiles, safeParts } from './attempt-files.ts'
import { type Capability, coversAttempt, makeCapability, verifyCapability } from './capability.ts'
import { checksumFile, startChecksum } from './checksum.ts'
import { FileClient, fileAddress } from './client.ts'
import { fileHandler } from './server.ts'

const attempt = { campaign: 'c1', step: 'sim', index: 7, fences: [11, 22] }
const key = randomBytes(32)
const capability: Capability = { campaign: 'c1', step: 'sim', fences: [11, 22], tasks: '5-9', expiresAtMs: 1000 }

let folder: string
let store: AttemptFiles
let server: Server
let base: string
let client: FileClient
/** How many bytes of the next GETs' bodies are let through before the connection breaks; one entry per GET. */
let breakAfter: number[]
let requests: string[]
let fetchedBytes: number
/** Of the server, for what is put. */
let limitBytes: number
/** Longer than a pause of the machine: who is cut off before the refusal is read sends again. */
const LINGER_MS = 3000

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-files-'))
  store = new AttemptFiles(join(folder, 'store'))
  breakAfter = []
  requests = []
  fetchedBytes = 0
  limitBytes = Number.POSITIVE_INFINITY
  const handler = fileHandler(
    {
      authorize(wanted, token, shown) {
        if (token !== 'secret') throw new IndraftError('auth.invalid')
        if (wanted.kind !== 'attempt') return
        const held = verifyCapability(key, shown ?? '', 500)
        if (!coversAttempt(held, wanted.attempt)) throw new IndraftError('capability.invalid')
      },
      findBlob: async () => null,
      findAttemptFile: (name, path) => store.find(name, path),
      putAttemptFile: (name, path, content, checksum) => store.put(name, path, content, checksum, limitBytes),
    },
    silentLog,
    { lingerMs: LINGER_MS },
  )
  server = createServer((incoming, response) => {
    requests.push(`${incoming.method} ${incoming.headers.range ?? ''}`.trim())
    const limit = incoming.method === 'GET' ? breakAfter.shift() : undefined
    if (limit !== undefined) {
      let sent = 0
      const write = response.write.bind(response)
      response.write = ((chunk: Uint8Array) => {
        if (sent + chunk.length <= limit) {
          sent += chunk.length
          return write(chunk)
        }
        write(chunk.subarray(0, limit - sent), () => breakOnceFetched(response, limit))
        return false
      }) as typeof response.write
    }
    handler(incoming, response)
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  base = `http://127.0.0.1:${(server.address() as { port: number }).port}`
  client = new FileClient({ ca: null, token: 'secret' })
})

afterEach(async () => {
  await client.close()
  server.closeAllConnections()
  await new Promise((resolve) => server.close(resolve))
  rmSync(folder, { recursive: true, force: true })
})

function writeSource(content: Uint8Array | string): string {
  const path = join(folder, 'source')
  writeFileSync(path, content)
  return path
}

/** Cuts the connection when the client has put what was let through on its disk. */
function breakOnceFetched(response: ServerResponse, added: number): void {
  fetchedBytes += added
  const timer = setInterval(() => {
    if (statSync(join(folder, 'got.part')).size < fetchedBytes) return
    clearInterval(timer)
    response.destroy()
  }, 5)
}

const held = () => ({ capability: makeCapability(key, capability), giveUpAfterMs: 30_000 })
const address = (path: string) => base + fileAddress.attempt(`c1/sim/7/11.22/${path}`)

async function put(content: Uint8Array | string, path = 'out/a file%.txt') {
  const source = writeSource(content)
  return client.putFile(address(path), source, await checksumFile(source), held())
}

describe('files - putting', () => {
  it('files - a file that was put comes back whole, with its size, checksum and store url', async () => {
    const reply = await put('hello')
    expect(reply).toMatchObject({ sizeBytes: 5, url: 'store:c1/sim/7/11.22/out/a file%.txt' })
    const target = join(folder, 'got')
    await client.getToFile(address('out/a file%.txt'), target, { ...held(), checksum: reply.checksum })
    expect(readFileSync(target, 'utf8')).toBe('hello')
  })

  it('files - a wrong checksum leaves nothing behind', async () => {
    const wrong = `sha256:${'0'.repeat(64)}`
    await expect(client.putFile(address('x'), writeSource('hello'), wrong, held())).rejects.toMatchObject({
      code: 'file.checksum',
    })
    expect(await store.find(attempt, 'x')).toBeNull()
    expect(readdirSync(join(folder, 'store/incoming'))).toEqual([])
  })

  it('files - the same content again is harmless, other content is a conflict', async () => {
    await put('hello')
    await put('hello')
    await expect(put('other')).rejects.toMatchObject({ code: 'file.conflict' })
    expect(readFileSync(store.locate(attempt, 'out/a file%.txt'), 'utf8')).toBe('hello')
  })

  it('files - one larger than the server takes is refused in words while it is still being sent, and sent once', async () => {
    limitBytes = 1000
    await expect(put(Buffer.alloc(30_000_000))).rejects.toMatchObject({ code: 'file.tooLarge' })
    expect(requests).toEqual(['PUT'])
    expect(readdirSync(join(folder, 'store/incoming'))).toEqual([])
  })

  it('files - a sender that does not stop after a refusal, and never said how much comes, is cut off', async () => {
    limitBytes = 1000
    const sent = request(address('x'), {
      method: 'PUT',
      headers: {
        authorization: 'Bearer secret',
        'indraft-capability': held().capability,
        'indraft-checksum': `sha256:${'0'.repeat(64)}`,
        'transfer-encoding': 'chunked',
      },
    })
    const answered = new Promise<number>((resolve) =>
      sent.once('response', (reply) => resolve(reply.resume().statusCode!)),
    )
    const closed = new Promise((resolve) => sent.once('socket', (socket) => socket.once('close', resolve)))
    sent.on('error', () => {})
    const more = () => void sent.write(Buffer.alloc(100_000), (error) => void (error ?? setImmediate(more)))
    more()
    expect(await answered).toBe(413)
    await closed
  })

  it('files - many writers of the same content at the same time all succeed and one makes the file', async () => {
    const outcomes = await Promise.all(
      Array.from({ length: 8 }, () => store.put(attempt, 'same', [Buffer.alloc(100_000, 1)] as never, null)),
    )
    expect(outcomes.filter((outcome) => outcome.created)).toHaveLength(1)
    expect(readdirSync(join(folder, 'store/incoming'))).toEqual([])
  })

  it('files - of writers of different content at the same time exactly one wins', async () => {
    const outcomes = await Promise.allSettled(
      Array.from({ length: 8 }, (_, i) => store.put(attempt, 'one', [Buffer.alloc(100_000, i)] as never, null)),
    )
    expect(outcomes.filter((outcome) => outcome.status === 'fulfilled')).toHaveLength(1)
  })

  it('files - a file where a folder is needed is refused by code', async () => {
    await store.put(attempt, 'a', [Buffer.from('x')] as never, null)
    await expect(store.put(attempt, 'a/b', [Buffer.from('x')] as never, null)).rejects.toMatchObject({
      code: 'file.conflict',
    })
  })
})

describe('files - reading', () => {
  it('files - ranges are served and a range outside is refused', async () => {
    await put('0123456789', 'r')
    const get = async (range: string) => {
      const reply = await fetch(address('r'), {
        headers: { range, authorization: 'Bearer secret', 'indraft-capability': held().capability },
      })
      return [reply.status, reply.headers.get('content-range'), (await reply.text()).slice(0, 10)]
    }
    expect(await get('bytes=2-4')).toEqual([206, 'bytes 2-4/10', '234'])
    expect(await get('bytes=7-')).toEqual([206, 'bytes 7-9/10', '789'])
    expect(await get('bytes=-2')).toEqual([206, 'bytes 8-9/10', '89'])
    expect((await get('bytes=10-'))[0]).toBe(416)
    expect(await client.size(address('r'), held())).toBe(10)
    expect(await client.size(address('missing'), held())).toBeNull()
  })

  it('files - a get whose connection breaks twice goes on where it stopped', async () => {
    const content = randomBytes(400_000)
    const { checksum } = await put(content, 'big')
    breakAfter = [100_000, 150_000]
    requests = []
    const target = join(folder, 'got')
    await client.getToFile(address('big'), target, { ...held(), checksum })
    expect(readFileSync(target).equals(content)).toBe(true)
    expect(requests).toEqual(['GET', 'GET bytes=100000-', 'GET bytes=250000-'])
  })

  it("files - an attempt's file goes on where it stopped also without a checksum, because it is written once", async () => {
    const content = randomBytes(400_000)
    await put(content, 'big')
    breakAfter = [100_000]
    requests = []
    await client.getToFile(address('big'), join(folder, 'got'), held())
    expect(readFileSync(join(folder, 'got')).equals(content)).toBe(true)
    expect(requests).toEqual(['GET', 'GET bytes=100000-'])
  })

  it('files - a range of a content that is another one now is answered with the whole', async () => {
    await put('0123456789', 'r')
    const get = async (condition: string) => {
      const authorization = { authorization: 'Bearer secret', 'indraft-capability': held().capability }
      const reply = await fetch(address('r'), {
        headers: { range: 'bytes=7-', 'if-range': condition, ...authorization },
      })
      return [reply.status, await reply.text()]
    }
    expect(await get('"10"')).toEqual([206, '789'])
    expect(await get('"11"')).toEqual([200, '0123456789'])
  })

  it('files - a part of other content is thrown away once, a wrong checksum at the server is final', async () => {
    const { checksum } = await put('0123456789', 'p')
    const target = join(folder, 'got')
    writeFileSync(`${target}.part`, 'abc')
    await client.getToFile(address('p'), target, { ...held(), checksum })
    expect(readFileSync(target, 'utf8')).toBe('0123456789')
    await expect(
      client.getToFile(address('p'), target, { ...held(), checksum: `sha256:${'1'.repeat(64)}` }),
    ).rejects.toMatchObject({ code: 'file.checksum' })
  })

  it('files - what is larger than accepted is refused before it is fetched', async () => {
    await put('0123456789', 'p')
    await expect(client.getToFile(address('p'), join(folder, 'got'), { ...held(), maxBytes: 9 })).rejects.toMatchObject(
      {
        code: 'file.tooLarge',
      },
    )
  })

  it('files - what the disk has no room for is refused before it is written, and not asked for again', async () => {
    await put('0123456789', 'p')
    requests = []
    const claimed: (number | null)[] = []
    const room = {
      claim: async (bytes: number | null) => {
        claimed.push(bytes)
        throw new IndraftError('store.full')
      },
    }
    const target = join(folder, 'got')
    await expect(client.getToFile(address('p'), target, { ...held(), room })).rejects.toMatchObject({
      code: 'store.full',
    })
    expect(claimed).toEqual([10])
    expect(statSync(`${target}.part`).size).toBe(0)
    expect(requests).toEqual(['GET'])
  })
})

describe('files - refusals', () => {
  it('files - a refusal is not repeated', async () => {
    await expect(client.getToFile(address('none'), join(folder, 'got'), held())).rejects.toMatchObject({
      code: 'request.notFound',
    })
    expect(requests).toHaveLength(1)
  })

  it('files - a server that is away is asked again until the caller gives up', async () => {
    const dead = new FileClient({ ca: null, token: null })
    await expect(
      dead.getToFile('http://127.0.0.1:1/x', join(folder, 'got'), { giveUpAfterMs: 600 }),
    ).rejects.toMatchObject({ code: 'link.timeout' })
    await dead.close()
  })

  it.each([
    ['no capability', ''],
    ['garbage', 'garbage.garbage'],
    ['another key', makeCapability(randomBytes(32), capability)],
    ['an expired one', makeCapability(key, { ...capability, expiresAtMs: 499 })],
    ['another task', makeCapability(key, { ...capability, tasks: '8-9' })],
    ['another fence', makeCapability(key, { ...capability, fences: [11, 23] })],
    ['a changed body', makeCapability(key, capability).replace(/^./, 'f')],
  ])('files - %s opens nothing', async (_what, shown) => {
    const reply = client.putFile(address('x'), writeSource('a'), await checksumFile(writeSource('a')), {
      capability: shown,
    })
    await expect(reply).rejects.toMatchObject({ code: 'capability.invalid' })
    expect(await store.find(attempt, 'x')).toBeNull()
  })

  it('files - a wrong token opens nothing', async () => {
    const stranger = new FileClient({ ca: null, token: 'wrong' })
    await expect(stranger.getToFile(address('x'), join(folder, 'got'), held())).rejects.toMatchObject({
      code: 'auth.invalid',
    })
    await stranger.close()
  })

  it.each(['../x', 'a/../../x', '/etc/passwd', 'a//b', './a', 'a\\b', 'a\0b', 'x/', '', `${'a'.repeat(256)}`])(
    'files - path %j cannot leave the attempt',
    (path) => {
      expect(() => safeParts(path)).toThrow(IndraftError)
    },
  )

  it.each(['..%2f..%2fx', '%2e%2e/%2e%2e/x', '..', 'a/%2e%2e/b', '%00'])(
    'files - address %s is refused as it stands on the wire',
    async (path) => {
      // A bare request, because clients resolve ".." before they send.
      const status = await new Promise<number>((resolve, reject) => {
        const asked = request(
          `${base}/`,
          {
            path: `/files/attempt/c1/sim/7/11.22/${path}`,
            headers: { authorization: 'Bearer secret', 'indraft-capability': held().capability },
          },
          (reply) => resolve(reply.resume().statusCode!),
        )
        asked.on('error', reject)
        asked.end()
      })
      expect(status).toBe(400)
    },
  )
})

describe('files - capabilities', () => {
  it('files - a capability for many scattered tasks stays short and covers them', () => {
    const tasks = Array.from({ length: 2000 }, (_, i) => i * 2).join(',')
    const text = makeCapability(key, { ...capability, tasks })
    expect(text.length).toBeLessThan(1000)
    const read = verifyCapability(key, text, 0)
    expect(coversAttempt(read, { ...attempt, index: 3998 })).toBe(true)
    expect(coversAttempt(read, { ...attempt, index: 3999 })).toBe(false)
  })
})

describe('files - checksums', () => {
  it.each([
    ['adler32', 'adler32:091e01de'],
    ['crc32', 'crc32:cbf43926'],
    ['md5', 'md5:25f9e794323b453885f5181f1b624d0b'],
  ])('files - %s of "123456789" is the published one', (algorithm, expected) => {
    const running = startChecksum(algorithm)
    running.update(Buffer.from('123456789'))
    expect(running.finish()).toBe(expected)
  })
  it('files - adler32 of "Wikipedia" over several strides is right', () => {
    const running = startChecksum('adler32')
    running.update(Buffer.from('Wiki'))
    running.update(Buffer.from('pedia'))
    expect(running.finish()).toBe('adler32:11e60398')
  })
})
