/** The link over a real nats-server: what a holder sees when the server is right, wrong, gone or back. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { NatsConnection } from '@nats-io/transport-node'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { connectNats, natsLink, serveNats, siteSubject } from '../shared/link-nats.ts'
import { silentLog } from '../shared/log.ts'
import { type RunningNats, startNats } from '../shared/servers/nats.ts'

const text = (bytes: Uint8Array) => Buffer.from(bytes).toString()
const echo = async (peer: { site: string }, frame: Uint8Array) => Buffer.from(`${peer.site}:${text(frame)}`)

let dir: string
let server: RunningNats
const open: NatsConnection[] = []

/** Like a site's own server: the pilot's credential opens the pilot's subjects and no others. */
const CONFIG = `
max_payload: 64KB
authorization {
  users: [
    { user: relay, password: r }
    { user: pilot, password: p, permissions: { publish: ["indraft.site.ALPHA"], subscribe: ["_INBOX_pilot.>"] } }
  ]
}`

beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), 'indraft-link-'))
  server = await startNats({ dir, configText: CONFIG })
})
afterEach(async () => {
  for (const connection of open.splice(0)) await connection.close()
  await server.stop()
  rmSync(dir, { recursive: true, force: true })
})

async function asRelay(): Promise<NatsConnection> {
  const options = { url: server.url, name: 'relay', user: 'relay', password: 'r', inboxPrefix: '_INBOX_pilot' }
  const connection = await connectNats(options)
  open.push(connection)
  return connection
}
async function asPilot(): Promise<NatsConnection> {
  const options = { url: server.url, name: 'pilot', user: 'pilot', password: 'p', inboxPrefix: '_INBOX_pilot' }
  const connection = await connectNats(options)
  open.push(connection)
  return connection
}
async function serve(handler: Parameters<typeof serveNats>[1], site?: string, onDropped?: (site: string) => void) {
  const connection = await asRelay()
  const serving = serveNats(connection, handler, silentLog, site, {
    inboxPrefixOf: () => '_INBOX_pilot',
    ...(onDropped && { onDropped }),
  })
  await connection.flush()
  return serving
}

describe('link over NATS - one request, one reply', () => {
  it('the site is the one whose subject was used', async () => {
    await serve(echo)
    expect(text(await natsLink(await asPilot(), 'ALPHA').request(Buffer.from('hi'), 5000))).toBe('ALPHA:hi')
    expect(text(await natsLink(await asRelay(), 'BETA').request(Buffer.from('hi'), 5000))).toBe('BETA:hi')
  })

  it('several servers of one site share the load, each request is handled once', async () => {
    let handled = 0
    const count = async () => {
      handled++
      return Buffer.from('ok')
    }
    await serve(count, 'ALPHA')
    await serve(count, 'ALPHA')
    const link = natsLink(await asPilot(), 'ALPHA')
    await Promise.all(Array.from({ length: 50 }, () => link.request(Buffer.from('x'), 5000)))
    expect(handled).toBe(50)
  })

  it('empty frames and the largest go through unchanged', async () => {
    await serve(async (_peer, frame) => frame)
    const link = natsLink(await asPilot(), 'ALPHA')
    for (const size of [0, 1, 48 * 1024]) {
      const frame = Buffer.alloc(size, 7)
      expect(Buffer.from(await link.request(frame, 5000)).equals(frame)).toBe(true)
    }
  })
})

describe('link over NATS - what goes wrong has a code', () => {
  it('nobody there', async () => {
    await expect(natsLink(await asPilot(), 'ALPHA').request(Buffer.from('x'), 5000)).rejects.toMatchObject({
      code: 'link.noResponder',
    })
  })

  it('nobody answers in time', async () => {
    await serve(() => new Promise(() => {}))
    await expect(natsLink(await asPilot(), 'ALPHA').request(Buffer.from('x'), 50)).rejects.toMatchObject({
      code: 'link.timeout',
    })
  })

  it('a handler that throws answers nothing and serves on', async () => {
    let broken = true
    await serve(async () => {
      if (broken) throw new Error('bug')
      return Buffer.from('ok')
    })
    const link = natsLink(await asPilot(), 'ALPHA')
    await expect(link.request(Buffer.from('x'), 50)).rejects.toMatchObject({ code: 'link.timeout' })
    broken = false
    expect(text(await link.request(Buffer.from('x'), 5000))).toBe('ok')
  })

  it('another site`s subject', async () => {
    await serve(echo)
    await expect(natsLink(await asPilot(), 'BETA').request(Buffer.from('x'), 300)).rejects.toMatchObject({
      code: expect.stringMatching(/^link\./),
    })
  })

  it('a request that names another reply subject than its own inbox is neither handled nor answered', async () => {
    const handled: string[] = []
    const dropped: string[] = []
    const dispatcher = async (_peer: unknown, frame: Uint8Array) => {
      handled.push(text(frame))
      return Buffer.from('reply')
    }
    await serve(dispatcher, undefined, (site) => dropped.push(site))
    const pilot = await asPilot()
    const victim = await asRelay()
    const heard: string[] = []
    victim.subscribe('>', {
      callback: (_error, message) => {
        if (text(message.data) === 'reply') heard.push(message.subject)
      },
    })
    await victim.flush()
    const subject = siteSubject('ALPHA')
    for (const reply of [siteSubject('BETA'), '_INBOX_pilots.x', '_INBOX_other.x'])
      pilot.publish(subject, 'x', { reply })
    pilot.publish(subject, 'x')
    expect(text(await natsLink(pilot, 'ALPHA').request(Buffer.from('mine'), 5000))).toBe('reply')
    await victim.flush()
    expect(handled).toEqual(['mine'])
    expect(dropped).toEqual(['ALPHA', 'ALPHA', 'ALPHA', 'ALPHA'])
    expect(heard).toEqual([expect.stringMatching(/^_INBOX_pilot\./)])
  })

  it('more than the server takes is refused, and the link goes on', async () => {
    await serve(echo)
    const link = natsLink(await asPilot(), 'ALPHA')
    await expect(link.request(Buffer.alloc(70_000), 300)).rejects.toMatchObject({
      code: expect.stringMatching(/^link\./),
    })
    expect(text(await link.request(Buffer.from('x'), 5000))).toBe('ALPHA:x')
  })

  it('closed on this side', async () => {
    const link = natsLink(await asPilot(), 'ALPHA')
    expect(link.isUp).toBe(true)
    await link.close()
    expect(link.isUp).toBe(false)
    await expect(link.request(Buffer.from('x'), 5000)).rejects.toMatchObject({ code: 'link.closed' })
  })

  it('a wrong password fails at once', async () => {
    const options = { url: server.url, name: 'x', user: 'pilot', password: 'wrong' }
    await expect(connectNats(options, false)).rejects.toThrow()
  })
})

describe('link over NATS - the server goes and comes back', () => {
  it('requests fail while it is gone and work afterwards, on the same link', async () => {
    await serve(echo)
    const link = natsLink(await asPilot(), 'ALPHA')
    expect(text(await link.request(Buffer.from('1'), 5000))).toBe('ALPHA:1')
    const port = server.port
    await server.stop()
    await expect(link.request(Buffer.from('2'), 100)).rejects.toMatchObject({ code: expect.stringMatching(/^link\./) })
    expect(link.isUp).toBe(false)
    server = await startNats({ dir, configText: CONFIG, port })
    for (;;) {
      const reply = await link.request(Buffer.from('3'), 500).catch(() => undefined)
      if (reply && text(reply) === 'ALPHA:3') break
    }
    expect(link.isUp).toBe(true)
  })

  it('waits for a server that is not there yet', async () => {
    const port = server.port
    await server.stop()
    const connecting = asPilot()
    server = await startNats({ dir, configText: CONFIG, port })
    await serve(echo)
    expect(text(await natsLink(await connecting, 'ALPHA').request(Buffer.from('x'), 5000))).toBe('ALPHA:x')
  })
})

it('link over NATS - the subject of a site', () => {
  expect(siteSubject('ALPHA')).toBe('indraft.site.ALPHA')
})

it('link over NATS - after a clock that was stepped back by an hour it connects again as ever', async () => {
  await serve(echo)
  const link = natsLink(await asPilot(), 'ALPHA')
  expect(text(await link.request(Buffer.from('a'), 2000))).toBe('ALPHA:a')
  const now = Date.now
  const clock = vi.spyOn(Date, 'now').mockImplementation(() => now() - 3_600_000)
  try {
    const { port } = server
    await server.stop()
    server = await startNats({ dir, configText: CONFIG, port })
    const answered = async () => text(await link.request(Buffer.from('b'), 2000))
    await vi.waitFor(async () => expect(await answered()).toBe('ALPHA:b'), { timeout: 30_000 })
  } finally {
    clock.mockRestore()
  }
})
