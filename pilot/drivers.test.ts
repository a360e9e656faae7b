/** Several transfers of one attempt, all or none: which of them go on, are waited for, and are taken back when one fails. */
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { FileClient } from '../shared/files/client.ts'
import { fetchInput, type Transfer, transferAll } from './drivers.ts'

const client = new FileClient({ ca: null, token: 'secret' })
const around: Omit<Transfer, 'signal'> = {
  files: () => ({ client, url: null }),
  policy: { allowGroups: [], allowImages: [], hostRuntime: true, network: 'outgoing', sharedFolders: [] },
  ...{ own: [], capability: null, giveUpAfterMs: 20_000, maxBytes: 1e9 },
}

let ending: AbortController
beforeEach(() => {
  ending = new AbortController()
})
afterEach(() => {
  vi.useRealTimers()
})

const transfer = (): Transfer => ({ ...around, signal: ending.signal })

test('transfers - when one fails the others are ended before it is said, and none begins', async () => {
  const begun: number[] = []
  const under = new Set<number>()
  const allBegun = Promise.withResolvers<void>()
  const act = async (_item: null, i: number, { signal }: Transfer) => {
    begun.push(i)
    if (begun.length === 4) allBegun.resolve()
    if (i === 0) {
      await allBegun.promise
      throw new Error('the first')
    }
    under.add(i)
    await new Promise<void>((done) => signal.addEventListener('abort', () => setImmediate(done), { once: true }))
    under.delete(i)
    // One says so, one comes through all the same.
    if (i === 1) throw new Error('ended with the others')
  }
  await expect(transferAll(Array(10).fill(null), transfer(), act)).rejects.toThrow('the first')
  expect([...under]).toEqual([])
  expect(begun).toEqual([0, 1, 2, 3])
})

test('transfers - what each brought is said in their order, whichever was first', async () => {
  const items = Array.from({ length: 4 }, () => Promise.withResolvers<number>())
  const brought = transferAll(items, transfer(), ({ promise }) => promise)
  for (const [i, { resolve }] of [...items.entries()].reverse()) {
    resolve(i)
    await new Promise(setImmediate)
  }
  expect(await brought).toEqual([0, 1, 2, 3])
})

describe('transfers that hang', () => {
  beforeEach(() => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
  })

  const LONG_MS = 60_000
  /** Its end as of now. */
  const follow = (transfers: Promise<unknown>) => {
    const state = { end: 'under way' }
    transfers.then(
      () => Object.assign(state, { end: 'done' }),
      (error: Error) => Object.assign(state, { end: error.message }),
    )
    return state
  }

  test.each<[string, string, (fail: (error: Error) => void) => void]>([
    ['another fails', 'no such file', (fail) => fail(new Error('no such file'))],
    ['the attempt is ended', 'the attempt was ended', () => ending.abort()],
  ])(
    'transfers - one that hangs is left when %s, and what it brings in the end is taken back',
    async (_when, said, end) => {
      const failing = Promise.withResolvers<string>()
      const hanging = Promise.withResolvers<string>()
      const undone: string[] = []
      const state = follow(
        transferAll(
          [Promise.resolve('early'), hanging.promise, failing.promise],
          transfer(),
          (item) => item,
          async (one) => void undone.push(one),
        ),
      )
      await vi.advanceTimersByTimeAsync(LONG_MS)
      expect(state.end).toBe('under way')
      end(failing.reject)
      expect(state.end).toBe('under way')
      await vi.advanceTimersByTimeAsync(LONG_MS)
      expect(state.end).toBe(said)
      expect(undone).toEqual(['early'])
      hanging.resolve('late')
      await vi.waitFor(() => expect(undone).toEqual(['early', 'late']))
      failing.resolve('later still')
    },
  )

  test('transfers - where taking back hangs as well, nobody waits for that either, and one thread is held', async () => {
    const undone: string[] = []
    const state = follow(
      transferAll(
        ['one', 'two', ''],
        transfer(),
        async (item) => {
          if (item === '') throw new Error('no such file')
          return item
        },
        (one) => {
          undone.push(one)
          return new Promise(() => {})
        },
      ),
    )
    await vi.advanceTimersByTimeAsync(LONG_MS)
    expect(state.end).toBe('no such file')
    expect(undone).toEqual(['one'])
  })
})

test('transfers - one that is ended before it begins makes no folder: its attempt’s may be gone already', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'indraft-drivers-'))
  writeFileSync(join(folder, 'source'), 'x')
  ending.abort()
  const fetched = fetchInput(pathToFileURL(join(folder, 'source')).href, join(folder, 'd', 'in'), null, transfer())
  await expect(fetched).rejects.toMatchObject({ code: 'stage.inFailed' })
  expect(readdirSync(folder)).toEqual(['source'])
  rmSync(folder, { recursive: true })
})
