/**
 * Whether the other end of a credential can be reached, and what is in the way: name, route, certificate, password, or
 * somebody who does not answer. Each is told by its code, not by prose, and says what to do.
 */
import { readPilotCredential } from '../../shared/credentials.ts'
import { IndraftError } from '../../shared/errors.ts'
import type { NodeFacts } from '../../shared/protocol/messages.ts'
import { askDispatcher } from '../start/ask.ts'
import { bad, type Check, good, warn, wordsOf } from './check.ts'
import { checkClock, checkSecret } from './files.ts'

const PATIENCE_MS = 10_000

/** The credential at this path, and the relay (or the centre) that it opens. */
export async function checkPilotCredential(
  path: string,
  shape: Omit<NodeFacts, 'node' | 'timeLeftMs' | 'labels'>,
): Promise<Check[]> {
  let url: string
  const checks: Check[] = []
  try {
    const { site, nats } = readPilotCredential(path)
    url = nats.url
    checks.push(await checkSecret('credential', path, `site ${site}, ${url} (${path})`))
  } catch (error) {
    return [bad('credential', wordsOf(error), "copy pilot.json out of the relay's state folder, mode 600")]
  }
  try {
    const startMs = performance.now()
    const offer = [{ shape, count: 1, timeLeftMs: 3_600_000, aheadMs: 0, node: null }]
    const { fits, isWhole, nowMs, reason } = await askDispatcher(path, offer, PATIENCE_MS)
    const tookMs = Math.round(performance.now() - startMs)
    const tls = url.startsWith('tls://') ? 'its certificate is the one expected' : 'without TLS'
    checks.push(good('relay answers', `${url} in ${tookMs} ms, ${tls}`))
    const tasks = fits.reduce((sum, fit) => sum + fit.tasks, 0)
    if (reason === 'draining') checks.push(DRAINED)
    else if (isWhole)
      checks.push(good('work', tasks > 0 ? `${tasks} tasks would fit here now` : 'none would fit here now'))
    else {
      const advice = 'on the edge: indraft-pilot doctor --edge --relay-state DIR says why'
      checks.push(warn('work', 'the relay did not hear from the centre', advice))
    }
    if (nowMs !== undefined) {
      // The clock was read some time between the two ends of asking.
      const aheadMs = nowMs - (Date.now() - tookMs / 2)
      checks.push(checkClock('clock against the relay', aheadMs, tookMs / 2))
    }
  } catch (error) {
    checks.push(unreachable('relay answers', url, error, PILOT_ADVICE))
  }
  return checks
}

interface Advice {
  refused: string
  silent: string
  password: string
  authority: string
}

const PILOT_ADVICE: Advice = {
  refused: 'does the relay run? On the edge: indraft-pilot doctor --edge --relay-state DIR',
  silent: 'a firewall between this machine and the relay, or the wrong address (--advertise of the relay)',
  password: 'the relay has another password by now: copy pilot.json out of its state folder again',
  authority: 'the relay was set up anew, or something stands in between: copy pilot.json out of its state folder again',
}

export const RELAY_ADVICE: Advice = {
  refused: 'the centre does not listen there, or a firewall says no: ask the people at the centre',
  silent: 'open this address and port outwards, for this machine; nothing has to be opened inwards',
  password: 'the centre knows this relay no more: indraft relay join with a new token',
  authority:
    'something stands in between and shows a certificate of its own, or the centre has a new authority: ask there',
}

export const DRAINED = warn(
  'work',
  'none: this site is to get nothing new for now',
  'indraft site enable at the centre ends a drain from there; a relay that drains ends by itself',
)

/** What kept us from an address, by its code wherever in the chain of causes it is. */
export function unreachable(name: string, url: string, error: unknown, advice: Advice): Check {
  const codes = codesOf(error)
  const has = (...wanted: string[]) => wanted.some((code) => codes.includes(code))
  const found = (what: string) => `${url}: ${what}`
  if (has('ENOTFOUND', 'EAI_AGAIN')) {
    return bad(
      name,
      found('its name is not known on this machine'),
      'an address instead of a name, or DNS for this machine',
    )
  }
  if (has('ECONNREFUSED', 'CONNECTION_REFUSED')) return bad(name, found('nobody listens there'), advice.refused)
  if (has('EHOSTUNREACH', 'ENETUNREACH')) return bad(name, found('there is no route to it'), advice.silent)
  if (has('CERT_HAS_EXPIRED', 'CERT_NOT_YET_VALID')) {
    return bad(
      name,
      found(`its certificate is not valid now (${codes.find((code) => code.startsWith('CERT_'))})`),
      'is the clock of both machines right? A relay makes its certificate anew when it starts',
    )
  }
  if (has('ERR_TLS_CERT_ALTNAME_INVALID')) {
    return bad(
      name,
      found('its certificate is for another name'),
      'reach it by the name it was started with (--host, --advertise)',
    )
  }
  if (codes.some((code) => TLS_CODE.test(code))) {
    return bad(name, found('its certificate is not of the authority in the credential'), advice.authority)
  }
  if (has('site.disabled')) {
    return bad(name, found('the centre has disabled this site'), 'ask the people there: indraft site enable')
  }
  if (has('AUTHORIZATION_VIOLATION', 'AUTHENTICATION_EXPIRED', 'auth.invalid'))
    return bad(name, found('it refuses this credential'), advice.password)
  if (has('link.timeout', 'TIMEOUT', 'ETIMEDOUT', 'UND_ERR_CONNECT_TIMEOUT')) {
    return bad(name, found('no answer in time'), advice.silent)
  }
  if (has('link.noResponder')) return bad(name, found('it is there, and nobody behind it answers'), advice.refused)
  return bad(name, found(wordsOf(error)), advice.refused)
}

const TLS_CODE = /SELF_SIGNED|UNABLE_TO_|CERT_SIGNATURE|CERT_UNTRUSTED|ERR_SSL|ERR_TLS/

function codesOf(error: unknown): string[] {
  const codes: string[] = []
  for (let at = error; at instanceof Error; at = at.cause) {
    const { code } = at as { code?: unknown }
    if (typeof code === 'string') codes.push(code)
    codes.push(at.name)
    // The NATS client keeps some of them in its words only.
    for (const [word] of at.message.matchAll(/\b(?:E[A-Z]{4,}|[A-Z]+(?:_[A-Z]+)+)\b/g)) codes.push(word)
    if (/authorization violation/i.test(at.message)) codes.push('AUTHORIZATION_VIOLATION')
    if (at instanceof AggregateError) codes.push(...at.errors.flatMap(codesOf))
  }
  if (error instanceof IndraftError) codes.push(error.code)
  return codes
}
