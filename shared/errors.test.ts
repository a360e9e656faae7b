import { describe, expect, it } from 'vitest'
import { chargeOf, ERROR_CODES, ERRORS, IndraftError, isIndraftError, refusal } from './errors.ts'

describe('errors - the catalogue', () => {
  it.each(ERROR_CODES)('%s reads area.what and has one sentence', (code) => {
    expect(code).toMatch(/^[a-z]+\.[a-zA-Z]+$/)
    expect(ERRORS[code].meaning).toMatch(/^[A-Z].{8,}\.$/s)
  })

  it('a status is an HTTP error or 0; how an attempt ends has none', () => {
    for (const code of ERROR_CODES) {
      const status = ERRORS[code].status
      const isEnd = /^(payload|stage|image|container|node|attempt)\./.test(code)
      expect([code, status === 0 || (status >= 400 && status < 600)]).toEqual([code, true])
      if (isEnd) expect([code, status]).toEqual([code, 0])
    }
  })

  it('a lost node is charged to the infrastructure, an exit status to the payload', () => {
    expect(chargeOf('node.lost')).toBe('infrastructure')
    expect(chargeOf('stage.inFailed')).toBe('infrastructure')
    expect(chargeOf('payload.exit')).toBe('payload')
    expect(chargeOf('payload.memory')).toBe('payload')
    for (const code of ERROR_CODES.filter((code) => code.startsWith('node.'))) {
      expect([code, chargeOf(code)]).toEqual([code, 'infrastructure'])
    }
    for (const code of ERROR_CODES.filter((code) => code.startsWith('payload.'))) {
      expect([code, chargeOf(code)]).toEqual([code, 'payload'])
    }
  })
})

describe('errors - carrying a refusal', () => {
  it('the error and its refusal say the same', () => {
    const cause = new Error('below')
    const error = new IndraftError('store.full', undefined, { path: 'steps.a', retryAfterMs: 5, cause })
    expect(error.message).toBe(ERRORS['store.full'].meaning)
    expect(error.cause).toBe(cause)
    expect(error.refusal).toEqual({ code: 'store.full', message: error.message, path: 'steps.a', retryAfterMs: 5 })
    expect(refusal('store.full').message).toBe(error.message)
  })

  it('isIndraftError looks at the code, never at the words', () => {
    const error: unknown = new IndraftError('auth.invalid', 'store.full')
    expect(isIndraftError(error)).toBe(true)
    expect(isIndraftError(error, 'auth.invalid', 'auth.missing')).toBe(true)
    expect(isIndraftError(error, 'store.full')).toBe(false)
    expect(isIndraftError(new Error('auth.invalid'))).toBe(false)
    expect(isIndraftError(undefined)).toBe(false)
  })
})
