import { createHash } from 'node:crypto'
import { join } from 'node:path'
import { Redis } from 'ioredis'
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest'
import { tokenHash } from '../../central/people.ts'
import { openSiteRegistry } from '../../central/sites/registry.ts'
import { relayCredentialSchema } from '../../shared/credentials.ts'
import { isIndraftError } from '../../shared/errors.ts'
import { connectNats, natsLink, siteInboxPrefix, siteSubject } from '../../shared/link-nats.ts'
import { decode, encode } from '../../shared/protocol/codec.ts'
import type { Grant, Message } from '../../shared/protocol/messages.ts'
import { SimulatedHolder } from '../conformance/simulated-holder.ts'
import { sampleShape } from '../sample-messages.ts'
import { type CentralLab, startCentralLab } from './central-lab.ts'

let lab: CentralLab
beforeAll(async () => {
  lab = await startCentralLab()
})
afterAll(async () => {
  await lab?.stop()
})

const join_ = async (name: string, more = {}) => {
  const { joinToken } = await lab.admin.call('addSite', { body: { name, ...more } })
  return (await lab.as(null).call('joinSite', { body: { token: joinToken } })).credential
}
const credentialOf = async (name: string) => relayCredentialSchema.parse(await join_(name))
const connectAs = async (site: string, creds: string) =>
  connectNats({ url: lab.natsUrl, name: site, creds, inboxPrefix: siteInboxPrefix(site) }, false)
const hello: Message<'hello'> = {
  role: 'relay',
  holder: 'relay',
  incarnation: 'i1',
  software: 'test',
  nodes: [],
  seen: null,
}

describe('sites - joining', () => {
  test('a join token works once', async () => {
    const { joinToken, site, url } = await lab.admin.call('addSite', { body: { name: 'ONCE', labels: { zone: 'EU' } } })
    expect([site.labels, url]).toEqual([{ zone: 'EU' }, lab.central.apiUrl])
    const anybody = lab.as(null)
    const { credential } = await anybody.call('joinSite', { body: { token: joinToken } })
    expect(relayCredentialSchema.parse(credential)).toMatchObject({ site: 'ONCE', nats: { url: lab.natsUrl } })
    await expect(anybody.call('joinSite', { body: { token: joinToken } })).rejects.toMatchObject({
      code: 'join.invalid',
    })
    await expect(anybody.call('joinSite', { body: { token: 'indraft-join-guess' } })).rejects.toMatchObject({
      code: 'join.invalid',
    })
  })

  test('a site added again keeps what is not said anew and gets another token', async () => {
    const given = { labels: { zone: 'EU' }, shapes: [sampleShape], direct: true }
    await lab.admin.call('addSite', { body: { name: 'AGAIN', ...given } })
    const { site } = await lab.admin.call('addSite', { body: { name: 'AGAIN', outageMs: 60_000 } })
    expect(site).toMatchObject({ ...given, outageMs: 60_000 })
    // Warnings go by what every site declares.
    const bare = await lab.admin.call('addSite', { body: { name: 'AGAIN', shapes: [] } })
    expect(bare.site).toMatchObject({ shapes: [], outageMs: 60_000 })
  })

  test('rotate --now: no join token of before opens anything, the new one and those of other sites do', async () => {
    const add = async (name: string) => (await lab.admin.call('addSite', { body: { name } })).joinToken
    const anybody = lab.as(null)
    const join = (token: string) => anybody.call('joinSite', { body: { token } })
    const [old, ofOther] = [await add('STOLEN'), await add('UNTOUCHED')]
    const rotate = (now: boolean) => lab.admin.call('rotateSite', { params: { site: 'STOLEN' }, body: { now } })
    // In their place one after another: a site may have several relays, each with a token of its own.
    const { joinToken: beside } = await rotate(false)
    await join(old)
    const { joinToken: fresh } = await rotate(true)
    await expect(join(beside)).rejects.toMatchObject({ code: 'join.invalid' })
    for (const token of [fresh, ofOther]) await join(token)
  })

  test('a join that is under way while the tokens are taken back gives nothing', async () => {
    const redis = new Redis(lab.redisUrl)
    try {
      const sites = openSiteRegistry(redis)
      await sites.put('RACE', {})
      const token = await sites.makeJoinToken('RACE', 60_000)
      const { generation } = await sites.redeemJoinToken(token)
      await sites.endJoinTokens('RACE')
      expect(await sites.endCredentials('RACE', Date.now(), null)).toBe(0)
      await expect(sites.addCredential('RACE', 'URACE', generation)).rejects.toMatchObject({ code: 'join.invalid' })
      const noted = (await sites.credentials()).filter(({ site }) => site === 'RACE')
      expect(noted).toMatchObject([{ user: 'URACE', endsAtMs: expect.any(Number) }])
    } finally {
      redis.disconnect()
    }
  })

  test('a join token of a centre of before works until the tokens are taken back', async () => {
    const redis = new Redis(lab.redisUrl)
    try {
      const sites = openSiteRegistry(redis)
      await sites.put('EARLIER', {})
      const kept = JSON.stringify({ site: 'EARLIER', keepOldMs: null })
      for (const token of ['one', 'two']) await redis.set(`indraft:join:${tokenHash(token)}`, kept)
      expect(await sites.redeemJoinToken('one')).toMatchObject({ generation: 0 })
      await sites.endJoinTokens('EARLIER')
      await expect(sites.redeemJoinToken('two')).rejects.toMatchObject({ code: 'join.invalid' })
    } finally {
      redis.disconnect()
    }
  })

  test('a name that is no subject is refused', async () => {
    for (const name of ['A.B', '*', '>', 'a b', '']) {
      await expect(lab.admin.call('addSite', { body: { name } })).rejects.toMatchObject({ code: 'request.invalid' })
    }
  })

  test('a direct site gets a credential for its pilots', async () => {
    expect(await join_('CLOUD', { direct: true })).toMatchObject({
      kind: 'pilot',
      site: 'CLOUD',
      nats: { user: null, inboxPrefix: '_INBOX_CLOUD' },
    })
  })
})

describe('sites - a credential opens that site alone', () => {
  test('its own subject is answered by central', async () => {
    const { nats } = await credentialOf('OWN')
    const link = natsLink(await connectAs('OWN', nats.creds), 'OWN')
    try {
      const reply = decode(await link.request(encode('hello', hello), 30_000))
      expect([reply.type, (reply.body as Message<'welcome'>).site]).toEqual(['welcome', 'OWN'])
    } finally {
      await link.close()
    }
  })

  test("another site's subject, its inbox and central's are refused by the server", async () => {
    const { nats } = await credentialOf('NOSY')
    const connection = await connectAs('NOSY', nats.creds)
    try {
      await expect(connection.request(siteSubject('OWN'), encode('hello', hello), { timeout: 30_000 })).rejects.toThrow(
        /Permissions Violation/i,
      )
      for (const subject of [
        siteSubject('OWN'),
        siteSubject('NOSY'),
        siteSubject('*'),
        '_INBOX_OWN.>',
        '_INBOX_central.>',
        '>',
        '$SYS.>',
      ]) {
        const refused = Promise.withResolvers<Error>()
        connection.subscribe(subject, { callback: (error) => void (error && refused.resolve(error)) })
        expect(String(await refused.promise), subject).toMatch(/Permissions Violation/i)
      }
    } finally {
      await connection.close()
    }
  })

  test('no credential opens nothing', async () => {
    await expect(connectNats({ url: lab.natsUrl, name: 'nobody' }, false)).rejects.toThrow(
      /authorization|authentication/i,
    )
  })

  test('garbage on its own subject is refused by code and counted', async () => {
    const { nats } = await credentialOf('GARBAGE')
    const link = natsLink(await connectAs('GARBAGE', nats.creds), 'GARBAGE')
    try {
      const reply = decode(await link.request(new Uint8Array([1, 2, 3]), 30_000))
      expect(reply).toMatchObject({ type: 'refused', body: { code: 'message.garbled' } })
    } finally {
      await link.close()
    }
    const text = await (await fetch(`${lab.central.metricsUrl}/metrics`)).text()
    expect(text).toContain('indraft_messages_refused_total{code="message.garbled",site="GARBAGE"} 1')
  })
})

test('sites - what a holder says of its nodes is what warnings name', async () => {
  const { nats } = await credentialOf('SEEN')
  const link = natsLink(await connectAs('SEEN', nats.creds), 'SEEN')
  const node = { node: 'n1', cores: 64, memoryBytes: 2 ** 36, scratchBytes: 0, gpus: 0, gpuMemoryBytes: 0 }
  const facts = { ...node, arch: 'x86_64', runtimes: ['host' as const], network: 'none' as const, timeLeftMs: null }
  try {
    await link.request(encode('hello', { ...hello, nodes: [{ ...facts, labels: {} }] }), 30_000)
  } finally {
    await link.close()
  }
  const source =
    'indraft: 1\nname: big\ngroup: /f\ndefaults: {image: host}\nsteps: {sim: {command: [x], resources: {cores: 65}}}\n'
  await vi.waitFor(async () => {
    const { warnings } = await lab.admin.call('submitCampaign', { body: { source, dryRun: true } })
    expect(warnings[0]?.message).toBe(
      'no registered site can run sim; the nearest is SEEN (cores: 65 wanted, 64 there)',
    )
  }, 30_000)
})

describe('sites - files at the centre', () => {
  const ends: (() => unknown)[] = []
  afterAll(async () => {
    for (const end of ends) await end()
  })

  const address = (path: string) => `${lab.central.apiUrl}/files/attempt/${path}`
  const shown = (token: string | null, capability?: string | null) => ({
    ...(token && { authorization: `Bearer ${token}` }),
    ...(capability && { 'indraft-capability': capability }),
  })
  const put = (path: string, token: string | null, capability?: string | null, text = 'hello') =>
    fetch(address(path), {
      method: 'PUT',
      body: text,
      headers: {
        ...shown(token, capability),
        'indraft-checksum': `sha256:${createHash('sha256').update(text).digest('hex')}`,
      },
    })
  const get = (path: string, token: string | null, capability?: string | null) =>
    fetch(address(path), { headers: shown(token, capability) })
  const verdictOf = async (asked: Promise<Response>) => {
    const answer = await asked
    return answer.ok ? answer.status : ((await answer.json()) as { code: string }).code
  }

  const submit = async (name: string, count: number) => {
    const source = `indraft: 1\nname: ${name}\ngroup: /f\ndefaults: {image: host}\nsteps: {sim: {count: ${count}, command: [x]}}\n`
    return (await lab.admin.call('submitCampaign', { body: { source } })).id
  }
  /** A relay of a new site with one task in hand. */
  const relayWithTask = async (site: string) => {
    const { nats, files } = await credentialOf(site)
    const link = natsLink(await connectAs(site, nats.creds), site)
    ends.push(() => link.close())
    const holder = new SimulatedHolder(link, 'relay', 'relay')
    await holder.hello()
    const grants: Grant[] = []
    await vi.waitFor(async () => {
      grants.push(...(await holder.pull({ waitMs: 200 }, 1)).grants)
      expect(grants).toHaveLength(1)
    }, 30_000)
    // Unconfirmed it would soon be taken back.
    holder.confirm()
    await holder.beat()
    const [{ lease, capability }] = grants as [Grant]
    // As a relay names them: its own fence after the centre's.
    const attempt = `${lease.campaign}/sim/${lease.tasks}/${lease.fences[0]}.7`
    return { token: files.token, lease, capability, attempt, holder }
  }

  test("a relay opens the attempts of its own leases; another site's are closed to it", async () => {
    const id = await submit('f', 2)
    const a = await relayWithTask('FILES-A')
    const b = await relayWithTask('FILES-B')
    expect([a.lease.campaign, b.lease.campaign]).toEqual([id, id])
    await submit('other', 1)
    const c = await relayWithTask('FILES-C')

    expect(await verdictOf(put(`${a.attempt}/out.txt`, a.token, a.capability))).toBe(201)
    expect(await verdictOf(put(`${a.attempt}/out.txt`, a.token, a.capability, 'changed'))).toBe('file.conflict')
    const part = await fetch(address(`${a.attempt}/out.txt`), {
      headers: { ...shown(a.token, a.capability), range: 'bytes=1-2' },
    })
    expect([part.status, await part.text()]).toEqual([206, 'el'])

    const closed = 'capability.invalid'
    const [campaign, step, index] = a.attempt.split('/')
    const fence = a.lease.fences[0]
    for (const path of [
      `${campaign}/${step}/${1 - Number(index)}/${fence}.7/x`,
      `${campaign}/${step}/${index}/${fence! + 1}.7/x`,
      `${campaign}/${step}/${index}/7.${fence}/x`,
      `${campaign}/other/${index}/${fence}.7/x`,
      `${b.attempt}/x`,
      `${c.attempt}/x`,
    ]) {
      expect(await verdictOf(put(path, a.token, a.capability)), path).toBe(closed)
    }
    // Inputs of a later step may be made anywhere: a lease of the campaign opens reading, and only that.
    expect(await verdictOf(get(`${a.attempt}/out.txt`, b.token, b.capability))).toBe(200)
    expect(await verdictOf(put(`${a.attempt}/y`, b.token, b.capability))).toBe(closed)
    for (const ask of [get, put]) {
      expect(await verdictOf(ask(`${a.attempt}/out.txt`, a.token)), 'the token alone').toBe(closed)
      expect(await verdictOf(ask(`${a.attempt}/out.txt`, c.token, c.capability)), 'no lease of it').toBe(closed)
      expect(await verdictOf(ask(`${a.attempt}/out.txt`, c.token, a.capability)), 'of another site').toBe(closed)
      expect(await verdictOf(ask(`${a.attempt}/out.txt`, a.token, 'e30.AAAA')), 'made up').toBe(closed)
      expect(await verdictOf(ask(`${a.attempt}/out.txt`, null, a.capability))).toBe('auth.missing')
      expect(await verdictOf(ask(`${a.attempt}/out.txt`, lab.adminToken, a.capability))).toBe('auth.invalid')
    }
  })

  test('a relay whose lease is over may bring what came late without its capability; nobody else may', async () => {
    await submit('past', 2)
    const a = await relayWithTask('FILES-PAST')
    const other = await relayWithTask('FILES-PAST-2')
    expect(await verdictOf(put(`${a.attempt}/x`, a.token))).toBe('capability.invalid')
    await a.holder.pull({ returned: [a.lease] }, 0)
    expect(await verdictOf(put(`${a.attempt}/x`, a.token))).toBe(201)
    expect(await verdictOf(get(`${a.attempt}/x`, a.token, 'e30.AAAA'))).toBe(200)
    expect(await verdictOf(put(`${a.attempt}/y`, other.token))).toBe('capability.invalid')
    const [campaign, step, index] = a.attempt.split('/')
    const [fence] = a.lease.fences
    for (const path of [
      `${campaign}/${step}/${1 - Number(index)}/${fence}.7`,
      `${campaign}/${step}/${index}/${fence! + 9}.7`,
    ]) {
      expect(await verdictOf(put(`${path}/x`, a.token)), path).toBe('capability.invalid')
    }
  })

  test('what a relay was given opens its files for weeks after the work may start', async () => {
    await submit('late', 1)
    const { lease, capability } = await relayWithTask('FILES-LATE')
    const { expiresAtMs } = JSON.parse(Buffer.from(capability!.split('.')[0]!, 'base64url').toString())
    expect(lease.tasks).toBe('0')
    expect((expiresAtMs - Date.now()) / 86_400_000).toBeGreaterThan(44)
  })

  test('a direct site needs the capability of a lease besides', async () => {
    const credential = (await join_('BARE', { direct: true })) as { files: { token: string } }
    expect(await verdictOf(put('cnosuchcmpgn/sim/0/7/x', credential.files.token))).toBe('capability.invalid')
  })
})

test('central - a Redis that is not there is said at the start', async () => {
  const { startCentral } = await import('../../central/main.ts')
  const { silentLog } = await import('../../shared/log.ts')
  const config = { ...lab.config, redis: 'redis://127.0.0.1:1', state: join(lab.config.state!, 'second') }
  const error = await startCentral(config, silentLog).catch((failed: unknown) => failed)
  expect(String(error)).toMatch(/Redis at redis:\/\/127\.0\.0\.1:1 does not answer/)
  expect(isIndraftError(error)).toBe(false)
})
