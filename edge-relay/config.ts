/** The relay's settings: the only place of this program that reads the environment or knows a default. */
import { type Config, type ConfigSources, loadConfig, SERVICE_SETTINGS, type Settings } from '../shared/config.ts'

export const relaySettings = {
  state: { type: 'text', default: './indraft-relay', meaning: 'Folder for the journal, files, keys; on a local disk.' },
  credential: {
    type: 'text',
    default: null,
    meaning: 'Path of relay.json, which `indraft relay join` makes. Without: <state>/relay.json.',
  },
  name: {
    type: 'text',
    default: null,
    meaning:
      "The relay's name, unique at its site. Without: made once of the host's name and kept in the state folder.",
  },
  natsServer: {
    type: 'text',
    default: null,
    meaning: 'Path of the nats-server to start. Without: looked for, then fetched.',
  },
  host: {
    type: 'text',
    default: '127.0.0.1',
    meaning: 'Address that pilots connect to; 0.0.0.0 for every address of the machine.',
  },
  advertise: {
    type: 'text',
    default: null,
    meaning:
      'Name or address under which pilots reach this machine. Without: host, or the host name where host is 0.0.0.0.',
  },
  natsPort: { type: 'number', default: 0, min: 0, max: 65_535, meaning: 'Port for pilots; 0: chosen once and kept.' },
  filesPort: {
    type: 'number',
    default: 0,
    min: 0,
    max: 65_535,
    meaning: 'Port of the file server; 0: chosen once and kept.',
  },
  metricsPort: {
    type: 'number',
    default: 0,
    min: 0,
    max: 65_535,
    meaning: 'Port of /metrics, /healthz and /readyz, on loopback; 0: chosen once and kept.',
  },
  ahead: {
    type: 'duration',
    default: '2h',
    max: '24h',
    meaning: 'How far the buffer reaches: work for all pilots for this long, to bridge an outage of the link.',
  },
  diskLimit: {
    type: 'bytes',
    default: '50GiB',
    min: '1MiB',
    meaning: 'Most that cached files may take; results and outputs on their way up are never dropped.',
  },
  diskReserve: {
    type: 'bytes',
    default: '256MiB',
    min: '0B',
    meaning: 'With less than this free no new work and no outputs are taken, so that results still find room.',
  },
  fileLimit: { type: 'bytes', default: '1TiB', min: '1MiB', meaning: 'The largest file that is taken in or fetched.' },
  fetchFrom: {
    type: 'list',
    default: [],
    meaning:
      'Beginnings of the http(s) URLs that images and inputs may come from; empty: any public address. Addresses of private networks are refused unless named here.',
  },
  fetchTime: { type: 'duration', default: '2h', min: '1s', meaning: 'One file from outside takes at most this long.' },
  once: {
    type: 'flag',
    default: false,
    meaning: 'End by itself when no pilot is there and nothing is left to do: for sites that allow no service.',
  },
  for: { type: 'duration', default: null, meaning: 'End by itself after this long; what is held is kept.' },
  timeScale: {
    type: 'number',
    default: 1,
    min: 0.001,
    max: 1,
    meaning: 'Shortens the intervals agreed with pilots, for one machine and for tests; 1 in production.',
  },
  ...SERVICE_SETTINGS,
} as const satisfies Settings

export type RelayConfig = Config<typeof relaySettings>

/** @throws IndraftError request.invalid */
export function loadRelayConfig(
  args: Readonly<Record<string, unknown>> = {},
  file?: string,
  env: ConfigSources['env'] = process.env,
): RelayConfig {
  return loadConfig(relaySettings, { args, file, env })
}
