import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { environmentName, loadConfig, type Settings, shownConfig } from './config.ts'
import { IndraftError } from './errors.ts'

const settings = {
  state: { type: 'text', default: null, meaning: 'Folder of the state.' },
  level: { type: 'text', default: 'info', oneOf: ['info', 'debug'], meaning: 'How much is logged.' },
  apiPort: { type: 'number', default: 0, min: 0, max: 65_535, meaning: 'Port of the API.' },
  strict: { type: 'flag', default: false, meaning: 'Refuse more.' },
  beatEvery: { type: 'duration', default: '5s', min: '100ms', max: '1h', meaning: 'Time between beats.' },
  diskLimit: { type: 'bytes', default: '1GiB', min: '1MiB', meaning: 'Space for files.' },
  groups: { type: 'list', default: ['/a'], meaning: 'Groups.' },
  token: { type: 'text', default: null, secret: true, meaning: 'A secret.' },
} as const satisfies Settings

const folder = mkdtempSync(join(tmpdir(), 'indraft-config-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))
let files = 0
function file(content: string): string {
  const path = join(folder, `${files++}.yaml`)
  writeFileSync(path, content)
  return path
}
function refusalOf(act: () => unknown): IndraftError {
  try {
    act()
  } catch (error) {
    expect(error).toBeInstanceOf(IndraftError)
    return error as IndraftError
  }
  throw new Error('nothing was refused')
}

describe('config - where a value comes from', () => {
  it('defaults, in the units of the programs', () => {
    expect(loadConfig(settings, { env: {} })).toEqual({
      state: null,
      level: 'info',
      apiPort: 0,
      strict: false,
      beatEvery: 5000,
      diskLimit: 2 ** 30,
      groups: ['/a'],
      token: null,
    })
  })

  it('command line over environment over file over default', () => {
    const path = file('apiPort: 1\nlevel: debug\nbeatEvery: 1s\n')
    const env = { INDRAFT_API_PORT: '2', INDRAFT_BEAT_EVERY: '2s' }
    const config = loadConfig(settings, { file: path, env, args: { beatEvery: '3s', strict: undefined } })
    expect(config).toMatchObject({ level: 'debug', apiPort: 2, beatEvery: 3000, strict: false })
  })

  it('is frozen', () => {
    const config = loadConfig(settings, { env: { INDRAFT_GROUPS: '/a, /b,,' } })
    expect(config.groups).toEqual(['/a', '/b'])
    expect(Object.isFrozen(config) && Object.isFrozen(config.groups)).toBe(true)
  })

  it.each([
    ['state', 'INDRAFT_STATE'],
    ['natsCa', 'INDRAFT_NATS_CA'],
    ['apiPort', 'INDRAFT_API_PORT'],
  ])('%s is %s in the environment', (name, variable) => {
    expect(environmentName(name)).toBe(variable)
  })

  it('an empty file sets nothing', () => {
    expect(loadConfig(settings, { file: file(''), env: {} }).apiPort).toBe(0)
  })
})

describe('config - what is refused', () => {
  it.each([
    ['INDRAFT_API_PORT', '70000', 'apiPort (INDRAFT_API_PORT): expected a number from 0 to 65535'],
    ['INDRAFT_API_PORT', 'http', 'apiPort (INDRAFT_API_PORT): expected a number from 0 to 65535'],
    ['INDRAFT_API_PORT', '', 'apiPort (INDRAFT_API_PORT): expected a number from 0 to 65535'],
    ['INDRAFT_API_PORT', '  ', 'apiPort (INDRAFT_API_PORT): expected a number from 0 to 65535'],
    ['INDRAFT_LEVEL', 'loud', 'level (INDRAFT_LEVEL): expected one of info, debug'],
    ['INDRAFT_STRICT', 'yes', 'strict (INDRAFT_STRICT): expected true or false'],
    [
      'INDRAFT_BEAT_EVERY',
      '5',
      'beatEvery (INDRAFT_BEAT_EVERY): expected a duration such as 30s or 2h, at least 100ms, at most 1h',
    ],
    [
      'INDRAFT_BEAT_EVERY',
      '1ms',
      'beatEvery (INDRAFT_BEAT_EVERY): expected a duration such as 30s or 2h, at least 100ms, at most 1h',
    ],
    [
      'INDRAFT_DISK_LIMIT',
      '5 GiB of disk',
      'diskLimit (INDRAFT_DISK_LIMIT): expected a size such as 500MB or 2GiB, at least 1MiB',
    ],
  ])('%s=%s', (name, value, message) => {
    const refused = refusalOf(() => loadConfig(settings, { env: { [name]: value } }))
    expect(refused.code).toBe('request.invalid')
    expect(refused.message).toBe(message)
    expect(environmentName(refused.path!)).toBe(name)
  })

  it('an unknown key of the file, by name, with what there is', () => {
    const refused = refusalOf(() => loadConfig(settings, { file: file('aipPort: 1\n'), env: {} }))
    expect(refused.path).toBe('aipPort')
    expect(refused.message).toMatch(/^aipPort \(unknown setting in .*expected state, level, apiPort/)
  })

  it.each([['- a\n- b\n'], ['just words'], ['a: [unclosed\n'], ['apiPort:\n'], ['groups: {a: 1}\n'], ['state: 5\n']])(
    'the file %j',
    (content) => {
      expect(refusalOf(() => loadConfig(settings, { file: file(content), env: {} })).code).toBe('request.invalid')
    },
  )

  it('a file that is not there, by its path', () => {
    const refused = refusalOf(() => loadConfig(settings, { file: join(folder, 'none.yaml'), env: {} }))
    expect(refused.code).toBe('request.invalid')
    expect(refused.message).toContain('none.yaml')
  })

  it('what does not go together', () => {
    const refused = refusalOf(() => loadConfig(settings, { env: {} }, (c) => (c.state ? undefined : 'state is needed')))
    expect(refused.message).toBe('configuration: state is needed')
  })
})

describe('config - what is shown', () => {
  it('units for people, and no secret', () => {
    const config = loadConfig(settings, { env: { INDRAFT_TOKEN: 'hunter2' } })
    const shown = shownConfig(settings, config)
    expect(shown).toMatchObject({ beatEvery: '5 s', diskLimit: '1 GiB', token: '(set)', state: null })
    expect(JSON.stringify(shown)).not.toContain('hunter2')
    expect(shownConfig(settings, loadConfig(settings, { env: {} })).token).toBeNull()
  })
})
