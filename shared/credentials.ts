/**
 * The two credential files of a site: relay.json opens the centre for a relay, pilot.json opens a relay (or, at a site
 * without one, the centre) for its pilots. Each is one JSON file of mode 0600 that holds everything needed, certificates
 * and keys as text, so that copying the file is all it takes to move it.
 */
import { readFileSync } from 'node:fs'
import { z } from 'zod'
import { IndraftError } from './errors.ts'
import { writePrivately } from './servers/private-file.ts'

const text = z.string().min(1)
/** Checked, because no request can be made with what does not fit into a header. */
const bearer = z.string().regex(/^[\x21-\x7e]+$/, 'expected visible ASCII characters alone, no spaces and no line ends')
const httpUrl = z.url({ protocol: /^https?$/, error: 'expected https://host:port' })
/** PEM of the one authority that the server's certificate must come from; null where the connection is not TLS. */
const authority = text.nullable()
/** The centre's Ed25519 public keys by name (SPKI, base64): work signed with any other key is refused. */
const keys = z.record(z.string(), z.string().max(500))

export const relayCredentialSchema = z.object({
  kind: z.literal('relay'),
  site: text,
  /** `creds` is the content of a NATS credentials file (a JWT and its seed). */
  nats: z.object({ url: text, creds: text, ca: authority }),
  /** `url` is `https://host:port`, without a path. */
  files: z.object({ url: httpUrl, token: bearer, ca: authority }),
  keys,
})
export type RelayCredential = z.infer<typeof relayCredentialSchema>

export const pilotCredentialSchema = z.object({
  kind: z.literal('pilot'),
  site: text,
  /** User and password towards a relay, `creds` towards the centre. */
  nats: z.object({
    url: text,
    user: text.nullable(),
    password: text.nullable(),
    creds: text.nullable(),
    ca: authority,
    inboxPrefix: text,
  }),
  /** Where files are served is said by the dispatcher's welcome. */
  files: z.object({ token: bearer, ca: authority }),
  keys,
})
export type PilotCredential = z.infer<typeof pilotCredentialSchema>

/** @throws IndraftError request.invalid naming the file, the field and what was expected */
export function readRelayCredential(path: string): RelayCredential {
  return readCredential(path, 'relay', relayCredentialSchema)
}

/** @throws IndraftError request.invalid naming the file, the field and what was expected */
export function readPilotCredential(path: string): PilotCredential {
  return readCredential(path, 'pilot', pilotCredentialSchema)
}

/** What was read from `path` already. @throws as readPilotCredential */
export function parsePilotCredential(path: string, text: string): PilotCredential {
  return parseCredential(path, text, 'pilot', pilotCredentialSchema)
}

function readCredential<S extends z.ZodType>(path: string, kind: 'relay' | 'pilot', schema: S): z.infer<S> {
  let text: string
  try {
    text = readFileSync(path, 'utf8')
  } catch (cause) {
    const code = (cause as NodeJS.ErrnoException).code
    if (code === 'ENOENT') throw unusable(path, `there is no such file; ${MADE_BY[kind]}`, cause)
    if (code === 'EACCES') throw unusable(path, 'it belongs to another user', cause)
    throw unusable(path, 'it cannot be read', cause)
  }
  return parseCredential(path, text, kind, schema)
}

function unusable(path: string, what: string, cause?: unknown): IndraftError {
  return new IndraftError('request.invalid', `credential ${path}: ${what}`, { path, ...(cause ? { cause } : {}) })
}

function parseCredential<S extends z.ZodType>(
  path: string,
  text: string,
  kind: 'relay' | 'pilot',
  schema: S,
): z.infer<S> {
  const wrong = (what: string, cause?: unknown) => unusable(path, what, cause)
  let content: unknown
  try {
    content = JSON.parse(text)
  } catch (cause) {
    throw wrong('it is not JSON', cause)
  }
  const found = (content as { kind?: unknown } | null)?.kind
  if (found !== kind) throw wrong(`expected kind "${kind}", found ${JSON.stringify(found) ?? 'none'}`)
  const parsed = schema.safeParse(content)
  if (parsed.success) return parsed.data
  const issue = parsed.error.issues[0]
  throw wrong(`${issue?.path.join('.')}: ${issue?.message ?? 'does not fit'}`)
}

const MADE_BY = {
  relay: '`indraft relay join` makes it',
  pilot: 'a running relay writes it into its state folder',
} as const

/** Replaces the file in one step, readable by its owner alone. */
export function writeCredential(path: string, credential: RelayCredential | PilotCredential): void {
  writePrivately(path, `${JSON.stringify(credential, null, 2)}\n`)
}
