import { open, readFile, stat } from 'node:fs/promises'
import { request } from 'undici'
import { expect, it } from 'vitest'
import { type ErrorCode, IndraftError } from '../shared/errors.ts'
import { fileAddress } from '../shared/files/client.ts'
import { outlookOf } from './upload-failures.ts'

const thrownBy = (work: () => Promise<unknown>) =>
  work().then(
    () => undefined,
    (error: unknown) => error,
  )

it.each<[ErrorCode, string]>([
  ['auth.invalid', 'passing'],
  ['site.disabled', 'passing'],
  ['internal.error', 'passing'],
  ['store.full', 'passing'],
  ['link.timeout', 'passing'],
  ['file.unreachable', 'passing'],
  ['capability.invalid', 'doubtful'],
  ['request.notFound', 'doubtful'],
  ['file.conflict', 'final'],
  ['file.checksum', 'final'],
  ['stage.outFailed', 'final'],
])('upload failures - %s is %s', (code, outlook) => {
  expect(outlookOf(new IndraftError(code))).toBe(outlook)
})

it('upload failures - what reading one file throws is doubtful, what the machine or the connection throws passes', async () => {
  expect(outlookOf(await thrownBy(() => readFile('/')))).toBe('doubtful')
  // A file that is gone is looked for again: where it is not found, that is final.
  expect(outlookOf(await thrownBy(() => stat('/nothing/here')))).toBe('passing')
  const closed = await open('/dev/null')
  await closed.close()
  expect(outlookOf(await thrownBy(() => closed.stat()))).toBe('passing')
  for (const code of ['EMFILE', 'ENFILE', 'ENOMEM']) {
    expect(outlookOf(Object.assign(new Error(code), { code, syscall: 'open' }))).toBe('passing')
  }
  expect(outlookOf(Object.assign(new Error('firewall'), { code: 'EPERM', syscall: 'connect' }))).toBe('passing')
  expect(outlookOf(Object.assign(new Error('over'), { code: 'CERT_HAS_EXPIRED' }))).toBe('passing')
})

it('upload failures - a name that no request can be made of is final, a header or an address is doubtful', async () => {
  const asked = (address: () => string, headers = {}) => thrownBy(async () => request(address(), { headers }))
  expect(outlookOf(await asked(() => fileAddress.attempt('c1/sim/0/1/\ud800')))).toBe('final')
  // As with a credential that somebody edited: it is about all files, and passes when it is mended.
  expect(outlookOf(await asked(() => 'http://127.0.0.1:1', { authorization: 'Bearer a\nb' }))).toBe('doubtful')
  expect(outlookOf(await asked(() => 'ftp://127.0.0.1:1'))).toBe('doubtful')
})
