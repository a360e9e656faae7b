import { createHash } from 'node:crypto'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest'
import { siteInboxPrefix } from '../../central/sites/nats-account.ts'
import { relayCredentialSchema } from '../../shared/credentials.ts'
import { isIndraftError } from '../../shared/errors.ts'
import { connectNats, natsLink, siteSubject } from '../../shared/link-nats.ts'
import { decode, encode } from '../../shared/protocol/codec.ts'
import type { Message } from '../../shared/protocol/messages.ts'
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
    await lab.admin.call('addSite', { body: { name: 'AGAIN', labels: { zone: 'EU' } } })
    const { site } = await lab.admin.call('addSite', { body: { name: 'AGAIN', outageMs: 60_000 } })
    expect(site).toMatchObject({ labels: { zone: 'EU' }, outageMs: 60_000 })
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
      const reply = decode(await link.request(encode('hello', hello), 5000))
      expect([reply.type, (reply.body as Message<'welcome'>).site]).toEqual(['welcome', 'OWN'])
    } finally {
      await link.close()
    }
  })

  test("another site's subject, its inbox and central's are refused by the server", async () => {
    const { nats } = await credentialOf('NOSY')
    const connection = await connectAs('NOSY', nats.creds)
    try {
      await expect(connection.request(siteSubject('OWN'), encode('hello', hello), { timeout: 2000 })).rejects.toThrow(
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
      const reply = decode(await link.request(new Uint8Array([1, 2, 3]), 5000))
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
    await link.request(encode('hello', { ...hello, nodes: [{ ...facts, labels: {} }] }), 5000)
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
  })
})

describe('sites - files at the centre', () => {
  const put = (path: string, token: string | null, text: string) =>
    fetch(`${lab.central.apiUrl}/files/attempt/${path}`, {
      method: 'PUT',
      body: text,
      headers: {
        ...(token && { authorization: `Bearer ${token}` }),
        'indraft-checksum': `sha256:${createHash('sha256').update(text).digest('hex')}`,
      },
    })

  test('a site token stores and reads attempts of campaigns that exist; others are refused', async () => {
    const { files } = await credentialOf('FILES')
    const source = 'indraft: 1\nname: f\ngroup: /f\ndefaults: {image: host}\nsteps: {sim: {command: [x]}}\n'
    const { id } = await lab.admin.call('submitCampaign', { body: { source } })
    expect((await put(`${id}/sim/0/7/out.txt`, files.token, 'hello')).status).toBe(201)
    expect((await put(`${id}/sim/0/7/out.txt`, files.token, 'other')).status).toBe(409)
    const got = await fetch(`${lab.central.apiUrl}/files/attempt/${id}/sim/0/7/out.txt`, {
      headers: { authorization: `Bearer ${files.token}`, range: 'bytes=1-2' },
    })
    expect([got.status, await got.text()]).toEqual([206, 'el'])
    expect((await put(`${id}/sim/0/7/x`, null, 'x')).status).toBe(401)
    expect((await put(`${id}/sim/0/7/x`, lab.adminToken, 'x')).status).toBe(401)
    expect((await put('cnosuchcmpgn/sim/0/7/x', files.token, 'x')).status).toBe(403)
  })

  test('a direct site needs the capability of a lease besides', async () => {
    const credential = (await join_('BARE', { direct: true })) as { files: { token: string } }
    const answer = await put('cnosuchcmpgn/sim/0/7/x', credential.files.token, 'x')
    expect([answer.status, ((await answer.json()) as { code: string }).code]).toEqual([403, 'capability.invalid'])
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
