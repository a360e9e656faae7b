/** Central's settings: every one with its type, default, unit and meaning. The only place that reads them. */
import { join } from 'node:path'
import { type Config, type ConfigSources, loadConfig, SERVICE_SETTINGS, type Settings } from '../shared/config.ts'

export const CENTRAL_SETTINGS = {
  state: {
    type: 'text',
    default: null,
    meaning: 'Folder for what is kept outside Redis: outputs, blobs, keys, the first admin token. Required.',
  },
  redis: {
    type: 'text',
    default: 'redis://127.0.0.1:6379',
    secret: true,
    meaning: 'URL of Redis or Valkey (redis://, rediss://, unix:///path): appendonly, appendfsync always, noeviction.',
  },
  redisReplicas: {
    type: 'number',
    default: 0,
    min: 0,
    max: 8,
    meaning:
      'Replicas of Redis that must have a write on disk before it is acknowledged. Set min-replicas-to-write too.',
  },
  nats: { type: 'text', default: 'nats://127.0.0.1:4222', meaning: 'URL of the nats-server that relays connect to.' },
  natsCa: {
    type: 'text',
    default: null,
    meaning: "PEM file of the authority that signed the NATS server's certificate.",
  },
  natsPublicUrl: {
    type: 'text',
    default: null,
    meaning: 'How relays reach NATS, written into their credential; the same as nats where not set.',
  },
  natsOperator: {
    type: 'text',
    default: null,
    meaning: 'Folder with the NATS identities (operator, account, signing key); <state>/nats-account where not set.',
  },
  host: { type: 'text', default: '127.0.0.1', meaning: 'Address that the API listens on.' },
  apiPort: {
    type: 'number',
    default: 8420,
    min: 0,
    max: 65535,
    meaning: 'Port of the API and the files; 0: any free one.',
  },
  metricsHost: {
    type: 'text',
    default: '127.0.0.1',
    meaning: 'Address that /metrics listens on (plain HTTP, no token).',
  },
  metricsPort: { type: 'number', default: 8421, min: 0, max: 65535, meaning: 'Port of /metrics; 0: any free one.' },
  tlsCert: { type: 'text', default: null, meaning: 'PEM file of the API certificate chain. Required beyond loopback.' },
  tlsKey: { type: 'text', default: null, meaning: 'PEM file of its private key.' },
  tlsCa: {
    type: 'text',
    default: null,
    meaning: 'PEM file of the authority that signed it, handed to relays; not needed where systems know it.',
  },
  publicUrl: {
    type: 'text',
    default: null,
    meaning:
      'How people and relays reach the API, as in https://indraft.example:8420; the listening address where not set.',
  },
  adminToken: {
    type: 'text',
    default: null,
    meaning:
      'File that holds the first administrator token; made at the first start. <state>/admin.token where not set.',
  },
  timeScale: {
    type: 'number',
    default: 1,
    min: 0.001,
    max: 10,
    meaning: 'Factor on every protocol interval; below 1 only for one machine and for tests.',
  },
  joinValid: { type: 'duration', default: '24h', min: '1s', meaning: 'How long the join token of a site can be used.' },
  ...SERVICE_SETTINGS,
} as const satisfies Settings

export type CentralConfig = Config<typeof CENTRAL_SETTINGS>

const LOOPBACK = /^(127\.\d+\.\d+\.\d+|::1|localhost)$/

/** @throws IndraftError request.invalid naming the setting */
export function loadCentralConfig(sources: Partial<ConfigSources> = {}): CentralConfig {
  return loadConfig(CENTRAL_SETTINGS, { env: process.env, ...sources }, (config) => {
    if (config.state === null) return 'state: expected a folder (--state, INDRAFT_STATE)'
    if ((config.tlsCert === null) !== (config.tlsKey === null)) return 'tlsCert, tlsKey: expected both or neither'
    if (config.tlsCert === null && !LOOPBACK.test(config.host)) {
      return `host ${config.host} is not loopback: expected tlsCert and tlsKey`
    }
    return undefined
  })
}

/** Where things lie: the settings that default to a place in the state folder, resolved. */
export function centralPaths(config: CentralConfig) {
  const state = config.state!
  return {
    state,
    natsAccount: config.natsOperator ?? join(state, 'nats-account'),
    adminToken: config.adminToken ?? join(state, 'admin.token'),
    signingKey: join(state, 'signing-key.pem'),
    capabilityKey: join(state, 'capability.key'),
    outputs: join(state, 'outputs'),
    blobs: join(state, 'blobs'),
  }
}
