/** Which credential a living pilot follows. That it does, with its link and its files, is seen in test/pilot/access.test.ts. */
import { expect, test } from 'vitest'
import type { PilotCredential } from '../shared/credentials.ts'
import { whyNot } from './access.ts'

const credential: PilotCredential = {
  kind: 'pilot',
  site: 'alpha',
  nats: { url: 'tls://edge:1', user: 'pilot', password: 'old', creds: null, ca: 'old', inboxPrefix: '_INBOX_pilot' },
  files: { token: 'old', ca: 'old' },
  keys: { first: 'AAAA', second: 'BBBB' },
}
const file = { owner: 1000, mode: 0o100600 }
const start = { credential, file }
const moved: PilotCredential = {
  ...credential,
  nats: { ...credential.nats, url: 'tls://edge:2', password: 'new', ca: 'new' },
  files: { token: 'new', ca: 'new' },
}

test.each([
  ['another address, authority and password', moved, file, null],
  ['fewer keys', { ...moved, keys: { second: 'BBBB' } }, file, null],
  ['another site', { ...moved, site: 'beta' }, file, 'it is for site beta, this pilot is of alpha'],
  ['a new key', { ...moved, keys: { ...moved.keys, third: 'CCCC' } }, file, 'its key third was not known'],
  ['another key of a known name', { ...moved, keys: { first: 'CCCC' } }, file, 'its key first was not known'],
  ['another owner', moved, { ...file, owner: 1001 }, 'it belongs to another user'],
  ['writable by the group', moved, { ...file, mode: 0o100660 }, 'others than before may write it'],
] as const)('credential that changes - %s', (_what, found, facts, refusal) => {
  const said = whyNot(start, found, facts)
  if (refusal === null) expect(said).toBe(null)
  else expect(said).toContain(refusal)
})

test('credential that changes - whom the site let write it at the start may go on', () => {
  const shared = { ...file, mode: 0o100660 }
  expect(whyNot({ credential, file: shared }, moved, shared)).toBe(null)
})
