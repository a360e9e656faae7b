/**
 * Configuration: a table of settings per program, each with name, type, default, unit and meaning; read from a YAML
 * file, then INDRAFT_<NAME> in the environment, then the command line (last wins); checked, frozen. This and each
 * program's config.ts are the only places that read the environment or know a default (the linter holds to it).
 */
import { readFileSync } from 'node:fs'
import { parse } from 'yaml'
import { IndraftError } from './errors.ts'
import { formatBytes, formatDuration, parseBytes, parseDuration } from './quantity.ts'

interface SettingBase {
  meaning: string
  /** Kept out of logs and listings. */
  secret?: boolean
}
export type Setting =
  | (SettingBase & { type: 'text'; default: string | null; oneOf?: readonly string[] })
  | (SettingBase & { type: 'number'; default: number | null; min: number; max: number })
  | (SettingBase & { type: 'flag'; default: boolean })
  | (SettingBase & { type: 'duration'; default: string | null; min?: string; max?: string })
  | (SettingBase & { type: 'bytes'; default: string | null; min?: string; max?: string })
  | (SettingBase & { type: 'list'; default: readonly string[] })

export type Settings = Readonly<Record<string, Setting>>

type ValueOf<S extends Setting> = S extends { type: 'flag' }
  ? boolean
  : S extends { type: 'list' }
    ? readonly string[]
    : S extends { type: 'text' }
      ? S extends { default: string }
        ? string
        : string | null
      : S extends { default: null }
        ? number | null
        : number

/** Durations in milliseconds, sizes in bytes. */
export type Config<T extends Settings> = { readonly [K in keyof T]: ValueOf<T[K]> }

/** Settings that every service has. */
export const SERVICE_SETTINGS = {
  failpoints: {
    type: 'text',
    default: null,
    meaning: 'For fault tests only: folder in which named moments are armed (shared/failpoint.ts); off where not set.',
  },
  logLevel: {
    type: 'text',
    default: 'info',
    oneOf: ['debug', 'info', 'warn', 'error', 'silent'],
    meaning: 'The least level that is logged.',
  },
} as const satisfies Settings

export interface ConfigSources {
  /** Path of a YAML file, or undefined. */
  file?: string | undefined
  env: Readonly<Record<string, string | undefined>>
  /** From the command line. */
  args?: Readonly<Record<string, unknown>> | undefined
}

/** `beatEvery` -> `INDRAFT_BEAT_EVERY`. */
export function environmentName(setting: string): string {
  return `INDRAFT_${setting.replace(/[A-Z]/g, (letter) => `_${letter}`).toUpperCase()}`
}

/**
 * @param crossCheck says what is wrong between fields, or undefined
 * @throws IndraftError request.invalid naming the setting, where it came from and what was expected
 */
export function loadConfig<T extends Settings>(
  settings: T,
  sources: ConfigSources,
  crossCheck: (config: Config<T>) => string | undefined = () => undefined,
): Config<T> {
  const fromFile = sources.file === undefined ? {} : readConfigFile(sources.file)
  for (const key of Object.keys(fromFile)) {
    if (!Object.hasOwn(settings, key)) bad(key, `unknown setting in ${sources.file}`, Object.keys(settings).join(', '))
  }
  const config: Record<string, unknown> = {}
  for (const [name, setting] of Object.entries(settings)) {
    const given = [
      [sources.args?.[name], 'the command line'],
      [sources.env[environmentName(name)], environmentName(name)],
      [fromFile[name], sources.file],
    ].find(([value]) => value !== undefined)
    config[name] = given ? readValue(name, setting, given[0], String(given[1])) : defaultOf(name, setting)
  }
  const wrong = crossCheck(config as Config<T>)
  if (wrong) throw new IndraftError('request.invalid', `configuration: ${wrong}`)
  return Object.freeze(config) as Config<T>
}

function readConfigFile(path: string): Record<string, unknown> {
  let content: unknown
  try {
    content = parse(readFileSync(path, 'utf8'), { version: '1.2' }) ?? {}
  } catch (cause) {
    throw new IndraftError('request.invalid', `${path} (configuration file): ${(cause as Error).message}`, { cause })
  }
  if (typeof content !== 'object' || Array.isArray(content))
    bad(path, 'configuration file', 'settings as "name: value"')
  return content as Record<string, unknown>
}

function bad(name: string, where: string, expected: string): never {
  throw new IndraftError('request.invalid', `${name} (${where}): expected ${expected}`, { path: name })
}

function defaultOf(name: string, setting: Setting): unknown {
  if (setting.default === null || typeof setting.default !== 'string') return setting.default
  return readValue(name, setting, setting.default, 'default')
}

function readValue(name: string, setting: Setting, value: unknown, where: string): unknown {
  switch (setting.type) {
    case 'text':
      if (typeof value !== 'string') return bad(name, where, 'text')
      if (setting.oneOf && !setting.oneOf.includes(value)) return bad(name, where, `one of ${setting.oneOf.join(', ')}`)
      return value
    case 'flag':
      if (value === true || value === 'true' || value === '1') return true
      if (value === false || value === 'false' || value === '0') return false
      return bad(name, where, 'true or false')
    case 'number': {
      const number =
        typeof value === 'number' ? value : typeof value === 'string' && value.trim() !== '' ? Number(value) : NaN
      if (!(number >= setting.min && number <= setting.max)) {
        return bad(name, where, `a number from ${setting.min} to ${setting.max}`)
      }
      return number
    }
    case 'duration':
    case 'bytes': {
      const read = setting.type === 'duration' ? parseDuration : parseBytes
      const amount = typeof value === 'string' ? read(value) : undefined
      const min = setting.min === undefined ? 0 : read(setting.min)!
      const max = setting.max === undefined ? Number.MAX_SAFE_INTEGER : read(setting.max)!
      if (amount === undefined || amount < min || amount > max) {
        const range = [setting.min && `at least ${setting.min}`, setting.max && `at most ${setting.max}`]
        const form = setting.type === 'duration' ? 'a duration such as 30s or 2h' : 'a size such as 500MB or 2GiB'
        return bad(name, where, [form, ...range.filter(Boolean)].join(', '))
      }
      return amount
    }
    case 'list':
      if (Array.isArray(value) && value.every((item) => typeof item === 'string')) return Object.freeze([...value])
      if (typeof value === 'string')
        return Object.freeze(
          value
            .split(',')
            .map((item) => item.trim())
            .filter(Boolean),
        )
      return bad(name, where, 'a list')
  }
}

/** What is logged at start: every setting but the secret ones. */
export function shownConfig<T extends Settings>(settings: T, config: Config<T>): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(settings).map(([name, setting]) => {
      const value = (config as Record<string, unknown>)[name]
      if (setting.secret) return [name, value === null ? null : '(set)']
      if (value !== null && setting.type === 'duration') return [name, formatDuration(value as number)]
      if (value !== null && setting.type === 'bytes') return [name, formatBytes(value as number)]
      return [name, value]
    }),
  )
}
