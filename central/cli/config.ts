/** Where the command finds central: options, then the environment, then client.json in the home folder. */
import { existsSync, readFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { z } from 'zod'
import { type Config, loadConfig, type Settings } from '../../shared/config.ts'
import { IndraftError } from '../../shared/errors.ts'
import type { ClientOptions } from '../api/client.ts'

export const CLIENT_SETTINGS = {
  home: {
    type: 'text',
    default: join(homedir(), '.indraft'),
    meaning: 'Folder with client.json, which `indraft up` writes.',
  },
  url: { type: 'text', default: null, meaning: "Central's address, as in https://indraft.example:8420." },
  token: { type: 'text', default: null, secret: true, meaning: 'Bearer token. Not an option: others could see it.' },
  ca: { type: 'text', default: null, meaning: "PEM file of the authority that signed central's certificate." },
} as const satisfies Settings

const clientFileSchema = z.object({
  url: z.string(),
  token: z.string().nullable().default(null),
  ca: z.string().nullable().default(null),
})

/** @throws IndraftError request.invalid where nothing says which central is meant */
export function loadClientOptions(
  args: Readonly<Record<string, unknown>> = {},
  env: NodeJS.ProcessEnv = process.env,
): ClientOptions {
  const { home, url, ca } = args
  const config: Config<typeof CLIENT_SETTINGS> = loadConfig(CLIENT_SETTINGS, { env, args: { home, url, ca } })
  const path = join(config.home, 'client.json')
  const kept = existsSync(path) ? readClientFile(path) : undefined
  const chosen = config.url ?? kept?.url
  if (chosen === undefined) {
    throw new IndraftError(
      'request.invalid',
      `no central is known: start one with "indraft up", or give --url (INDRAFT_URL) and INDRAFT_TOKEN (no ${path})`,
    )
  }
  // A kept token belongs to the central it was kept for; it is not shown to another one.
  const isKept = chosen === kept?.url
  return {
    url: chosen,
    token: config.token ?? (isKept ? kept.token : null),
    ca: config.ca === null ? (isKept ? kept.ca : null) : readFileSync(config.ca, 'utf8'),
  }
}

function readClientFile(path: string): z.infer<typeof clientFileSchema> {
  try {
    return clientFileSchema.parse(JSON.parse(readFileSync(path, 'utf8')))
  } catch (cause) {
    throw new IndraftError('request.invalid', `${path}: expected {"url", "token", "ca"}`, { cause })
  }
}
