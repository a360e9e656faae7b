/** The relay's credential, read from a real file that the test replaces. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { silentLog } from '../shared/log.ts'
import { type ManualClock, manualClock } from '../test/manual-clock.ts'
import { KeptCredential } from './credential.ts'

let folder: string
let path: string
let clock: ManualClock
let kept: KeptCredential | undefined

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-credential-'))
  path = join(folder, 'relay.json')
  clock = manualClock()
})
afterEach(() => {
  kept?.stop()
  rmSync(folder, { recursive: true, force: true })
})

function write(files: { url?: string; token?: string }): void {
  const given = { url: 'https://centre.example:8443', token: 'indraft-files-one', ca: null, ...files }
  const nats = { url: 'tls://centre.example:4222', creds: 'creds', ca: null }
  writeFileSync(path, JSON.stringify({ kind: 'relay', site: 'ALPHA', nats, files: given, keys: {} }))
}
const open = () => {
  kept = new KeptCredential(path, clock, silentLog)
  return kept
}

it.each([
  [{ token: 'indraft-files-one\n' }, 'files.token: expected visible ASCII'],
  [{ token: 'indraft files' }, 'files.token: expected visible ASCII'],
  [{ token: '' }, 'files.token: expected visible ASCII'],
  [{ url: 'centre.example:8443' }, 'files.url: expected https://host:port'],
  [{ url: 'tls://centre.example:8443' }, 'files.url: expected https://host:port'],
])(
  'credential - %j, of which no request can be made, is refused with its file, its field and what was expected',
  (files, said) => {
    write(files)
    const refused = { code: 'request.invalid', message: expect.stringContaining(`credential ${path}: ${said}`) }
    expect(open).toThrow(expect.objectContaining(refused))
  },
)

it('credential - a running relay follows a new token, and none that no request can be made with', async () => {
  write({})
  const credential = open()
  write({ token: 'indraft-files-another\n' })
  await clock.advance(2000)
  expect(credential.now.files.token).toBe('indraft-files-one')
  write({ token: 'indraft-files-the-next' })
  await clock.advance(2000)
  expect(credential.now.files.token).toBe('indraft-files-the-next')
})
