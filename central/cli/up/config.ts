/** Settings of `indraft up`, `demo` and `doctor`: the only file of theirs that reads the environment or knows a default. */
import { homedir, tmpdir } from 'node:os'
import { delimiter, dirname, join } from 'node:path'
import { type Config, loadConfig, type Settings } from '../../../shared/config.ts'

export const UP_SETTINGS = {
  home: {
    type: 'text',
    default: join(homedir(), '.indraft'),
    meaning: 'Folder of this installation: client.json and up/.',
  },
  pilots: { type: 'number', default: 2, min: 0, max: 256, meaning: 'Number of pilots to start.' },
  cores: {
    type: 'number',
    default: null,
    min: 1,
    max: 4096,
    meaning: "Cores that each pilot offers; the machine's divided among them when not given.",
  },
  memory: {
    type: 'bytes',
    default: null,
    min: '64MiB',
    meaning: "Memory that each pilot offers; four fifths of the machine's divided among them when not given.",
  },
  apiPort: { type: 'number', default: 0, min: 0, max: 65535, meaning: 'Port of the API; 0: any free one, then kept.' },
  site: { type: 'text', default: 'local', meaning: 'Name of the site that the relay and the pilots belong to.' },
  redisServer: {
    type: 'text',
    default: null,
    meaning: 'Path of redis-server (or valkey-server); looked for when not given.',
  },
  natsServer: { type: 'text', default: null, meaning: 'Path of nats-server; looked for when not given.' },
  timeScale: {
    type: 'number',
    default: 0.1,
    min: 0.001,
    max: 10,
    meaning: 'Factor on every protocol interval: on one machine nobody needs a minute to notice a dead pilot.',
  },
  logLevel: {
    type: 'text',
    default: 'info',
    oneOf: ['debug', 'info', 'warn', 'error'],
    meaning: 'How much the programs write into their logs.',
  },
} as const satisfies Settings

export type UpConfig = Config<typeof UP_SETTINGS>

/** @throws IndraftError request.invalid naming the setting */
export function loadUpConfig(args: Record<string, unknown>, env: NodeJS.ProcessEnv = process.env): UpConfig {
  return loadConfig(UP_SETTINGS, { env, args })
}

/** What a program of ours is started with: its settings by name, and this Node first on its path (for `node` payloads). */
export function programEnvironment(settings: Readonly<Record<string, string>>): NodeJS.ProcessEnv {
  const { PATH = '/usr/local/bin:/usr/bin:/bin', HOME, LANG, TZ, TMPDIR, XDG_CACHE_HOME } = process.env
  const own = { PATH: [dirname(process.execPath), PATH].join(delimiter), HOME, LANG, TZ, TMPDIR, XDG_CACHE_HOME }
  return { ...own, ...settings }
}

/** A folder of our own for what may be thrown away. */
export function temporaryFolder(): string {
  return tmpdir()
}
