/** Inputs and outputs beyond what a whole attempt shows (payload.test.ts): what others do meanwhile, and what is left. */

import { execFileSync } from 'node:child_process'
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { silentLog } from '../shared/log.ts'
import { digestOf } from '../shared/signing.ts'
import { AttemptFolder } from './attempt-folder.ts'
import { runBound } from './bound.ts'
import { fetchManifest, fetchWinner, type Transfer } from './drivers.ts'
import { storeLogs, storeOutputs } from './stage-out.ts'
import { makeTemplate, TestSite } from './testbench.ts'

const SECRET = 'the credential of the pilot'
const ref = { campaign: 'c0000000001', step: 'sim', index: 0, bundle: 'b1', fences: [7, 8] } as Parameters<
  typeof storeOutputs
>[0]

let site: TestSite
let folder: AttemptFolder
let shared: string
let secret: string
beforeEach(async () => {
  site = await new TestSite().open()
  folder = new AttemptFolder(join(site.folder, 'tasks', 'one'))
  await folder.make()
  shared = join(site.folder, 'shared')
  secret = join(site.folder, 'pilot.json')
  mkdirSync(shared)
  writeFileSync(secret, SECRET)
})
afterEach(async () => {
  await site.close()
})

function transfer(more: Partial<Transfer> = {}): Transfer {
  const { files, policy, own } = site.around()
  const { signal } = new AbortController()
  return { files, policy, own, signal, capability: null, giveUpAfterMs: 20_000, maxBytes: 1e9, ...more }
}

/** Acts once, as a policy is asked where a file may be written: after its checksum, before its copy. */
function whenAsked(act: () => void): Transfer['policy'] {
  let isDone = false
  return {
    ...site.around().policy,
    get sharedFolders() {
      if (!isDone) act()
      isDone = true
      return []
    },
  }
}

function write(name: string, content = name): string {
  const path = join(folder.work, name)
  writeFileSync(path, content)
  return path
}

function swapForLink(path: string): void {
  unlinkSync(path)
  symlinkSync(secret, path)
}

const output = (path: string, url: string | null = null) => ({ path, url, optional: false })
const sharedUrl = (name: string) => pathToFileURL(join(shared, name)).href

describe('outputs', () => {
  test('outputs - a link put in the place of one that was looked at is not followed', async () => {
    const names = ['0', '1', '2', '3', '4', '5']
    for (const name of names) write(name)
    // The last is looked at with the others, and not begun before one of them is stored.
    const { files } = transfer()
    let isDone = false
    const swapping = () => {
      if (!isDone) swapForLink(join(folder.work, '5'))
      isDone = true
      return files()
    }
    const stored = storeOutputs(
      ref,
      names.map((name) => output(name)),
      folder,
      transfer({ files: swapping }),
    )
    await expect(stored).rejects.toMatchObject({ code: 'payload.outputRefused' })
    expect(await site.store.find(ref, '5')).toBeNull()
  })

  test('outputs - a link above it is not followed either', async () => {
    mkdirSync(join(folder.work, 'd'))
    write('d/pilot.json')
    rmSync(join(folder.work, 'd'), { recursive: true })
    symlinkSync(site.folder, join(folder.work, 'd'))
    const stored = storeOutputs(ref, [output('d/pilot.json')], folder, transfer())
    await expect(stored).rejects.toMatchObject({ code: 'payload.outputRefused' })
  })

  test.each([
    ['the dispatcher', null],
    ['the shared file system', 'out'],
  ])('outputs - what was opened is what %s gets, whatever its name leads to meanwhile', async (_to, name) => {
    const path = write('out', 'mine')
    const { files } = transfer()
    const swapping = { policy: whenAsked(() => swapForLink(path)) }
    const atServer = () => {
      if (!isLink(path)) swapForLink(path)
      return files()
    }
    const around = transfer(name === null ? { files: atServer } : swapping)
    const [record] = await storeOutputs(ref, [output('out', name && sharedUrl(name))], folder, around)
    expect(isLink(path)).toBe(true)
    expect(record).toMatchObject({ sizeBytes: 4, checksum: digestOf(Buffer.from('mine')) })
    const where = name === null ? (await site.store.find(ref, 'out'))!.location : fileURLToPath(record!.url)
    expect(readFileSync(where, 'utf8')).toBe('mine')
  })

  test('outputs - one that is written on while it is stored is the payload’s fault, and not kept', async () => {
    const path = write('out', 'one')
    const change = () => {
      // The system's clock for files has steps.
      const before = statSync(path, { bigint: true }).ctimeNs
      while (statSync(path, { bigint: true }).ctimeNs === before) writeFileSync(path, 'other')
    }
    const policy = whenAsked(change)
    const stored = storeOutputs(ref, [output('out', sharedUrl('out'))], folder, transfer({ policy }))
    await expect(stored).rejects.toMatchObject({ code: 'payload.outputRefused' })
    expect(readdirSync(shared)).toEqual([])
  })

  test('outputs - those on the shared file system are taken back when a later one fails, or the attempt is ended', async () => {
    const names = ['0', '1', '2', '3']
    for (const name of [...names, 'last']) write(name)
    // The fifth begins when one of four is stored.
    const wanted = (url: string | null) => [...names.map((name) => output(name, sharedUrl(name))), output('last', url)]
    const failed = storeOutputs(ref, wanted('nowhere:x'), folder, transfer())
    await expect(failed).rejects.toMatchObject({ code: 'stage.outFailed' })
    expect(readdirSync(shared)).toEqual([])
    const ending = new AbortController()
    const { files } = transfer()
    let storedBefore = 0
    const ended = () => {
      storedBefore = readdirSync(shared).length
      ending.abort()
      return files()
    }
    const cancelled = storeOutputs(ref, wanted(null), folder, transfer({ files: ended, signal: ending.signal }))
    await expect(cancelled).rejects.toThrow()
    expect(storedBefore).toBeGreaterThan(0)
    expect(readdirSync(shared)).toEqual([])
  })

  test('outputs - no folder is made outside those that the site shares, by a link in them', async () => {
    const outside = join(site.folder, 'outside')
    mkdirSync(outside)
    symlinkSync(outside, join(shared, 'way'))
    write('out')
    const policy = { ...site.around().policy, sharedFolders: [shared] }
    const stored = storeOutputs(ref, [output('out', sharedUrl('way/new/out'))], folder, transfer({ policy }))
    await expect(stored).rejects.toMatchObject({ code: 'policy.refused' })
    expect(readdirSync(outside)).toEqual([])
    // A link of the final name leads nowhere: what is written stands beside it.
    writeFileSync(join(outside, 'older'), '')
    symlinkSync(join(outside, 'older'), join(shared, 'out'))
    await storeOutputs(ref, [output('out', sharedUrl('out'))], folder, transfer({ policy }))
    expect(readdirSync(shared).sort()).toEqual(['out', 'out.attempt-7-8', 'way'])
    expect(readdirSync(outside)).toEqual(['older'])
  })

  test('outputs - modes: read-only is stored, nobody becomes this account, what is locked is the payload’s fault', async () => {
    const said = (await runBound(`
      import { readdirSync, readFileSync, statSync } from 'node:fs'
      import { setTimeout as sleep } from 'node:timers/promises'
      import { TestSite } from './testbench.ts'
      const site = await new TestSite().open()
      const run = async (script, url, path = 'out') => {
        const result = await site.runScript('echo x > out;' + script, { outputs: [{ path, url, optional: false }] })
        const stored = result.outputs.find((output) => output.path === path)?.url
        const at = stored?.startsWith('file:') ? new URL(stored) : null
        return { end: result.end, reason: result.reason, ...(at && { mode: (statSync(at).mode & 0o7777).toString(8), content: readFileSync(at, 'utf8') }) }
      }
      const url = 'file://' + site.folder + '/shared/out'
      const said = {
        readOnly: await run('chmod 444 out', url),
        readOnlyAtTheServer: await run('chmod 444 out', null),
        setuid: await run('chmod 4755 out', url),
        locked: await run('chmod 0 out', null),
        lockedFolder: await run('mkdir d; mv out d; chmod 0 d', url, 'd/out'),
      }
      // Their folders are unlocked as they are removed.
      while (readdirSync(site.folder + '/tasks').length > 0) await sleep(10)
      await site.close()
      console.log(JSON.stringify(said))`)) as Record<string, unknown>
    const refused = { end: 'failed', reason: 'payload.outputRefused' }
    expect(said).toEqual({
      readOnly: { end: 'done', reason: null, mode: '444', content: 'x\n' },
      readOnlyAtTheServer: { end: 'done', reason: null },
      setuid: { end: 'done', reason: null, mode: '755', content: 'x\n' },
      locked: refused,
      lockedFolder: refused,
    })
  })
})

function isLink(path: string): boolean {
  return lstatSync(path).isSymbolicLink()
}

describe('logs', () => {
  const logsOf = async (more: Partial<Transfer> = {}) => {
    const stored = await storeLogs(ref, folder, transfer(more), silentLog)
    return stored.map(({ path, sizeBytes }) => `${path} ${sizeBytes}`)
  }
  const put = (name: 'stdout' | 'stderr', content: string) => writeFileSync(folder.log(name), content)

  test.each<[string, (stdout: string) => void]>([
    ['a link to a file of the account', (stdout) => symlinkSync(secret, stdout)],
    ['a link to what has no end', (stdout) => symlinkSync('/dev/zero', stdout)],
    [
      'a link to a FIFO',
      (stdout) => {
        execFileSync('mkfifo', [join(folder.work, 'fifo')])
        symlinkSync(join(folder.work, 'fifo'), stdout)
      },
    ],
    ['a FIFO', (stdout) => void execFileSync('mkfifo', [stdout])],
    ['a folder', (stdout) => mkdirSync(stdout)],
  ])('logs - %s in the place of one is neither stored nor waited for', async (_what, make) => {
    make(folder.log('stdout'))
    put('stderr', 'said')
    expect(await logsOf()).toEqual(['.log/stderr 4'])
    expect(await site.store.find(ref, '.log/stdout')).toBeNull()
  })

  test('logs - of an attempt whose folder is gone there are none, and a link in its place leads to nobody’s', async () => {
    const others = join(site.folder, 'others')
    mkdirSync(join(others, 'work'), { recursive: true })
    writeFileSync(join(others, 'stdout'), SECRET)
    writeFileSync(join(others, 'work', 'out'), SECRET)
    rmSync(folder.path, { recursive: true })
    const storing = () => storeOutputs(ref, [output('out')], folder, transfer())
    expect(await logsOf()).toEqual([])
    await expect(storing()).rejects.toMatchObject({ code: 'payload.outputMissing' })
    symlinkSync(others, folder.path)
    expect(await logsOf()).toEqual([])
    await expect(storing()).rejects.toMatchObject({ code: 'payload.outputRefused' })
  })

  test('logs - one that takes too long to read is given up, and nothing of it is stored', async () => {
    // Hours of zeros, of which the disk has none.
    put('stdout', '')
    truncateSync(folder.log('stdout'), 2 ** 43)
    expect(await logsOf({ signal: AbortSignal.timeout(100) })).toEqual([])
  })
})

describe('inputs', () => {
  const needs = { ...makeTemplate().needs, scratchBytes: 100_000 }
  const byUrl = (path: string) => ({
    ...{ url: pathToFileURL(join(shared, path)).href, from: null, output: null, path, list: null, checksum: null },
  })

  test('inputs - all together have the scratch space of their task', async () => {
    for (const name of ['0', '1', '2']) writeFileSync(join(shared, name), Buffer.alloc(40_000, 1))
    const run = (names: string[]) => site.runScript('true', { needs, inputs: names.map(byUrl) })
    expect(await run(['0', '1'])).toMatchObject({ end: 'done' })
    expect(await run(['0', '1', '2'])).toMatchObject({ end: 'failed', reason: 'payload.scratch', wallMs: 0 })
  })

  const winner = (index: number, output: string, sizeBytes: number) => {
    const content = Buffer.alloc(sizeBytes, 1)
    const path = join(shared, `${output}-${index}`)
    writeFileSync(path, content)
    return { index, output, url: pathToFileURL(path).href, sizeBytes, checksum: digestOf(content) }
  }
  const gather = (entries: object[], output: string) => {
    const digest = site.addBlob(JSON.stringify({ step: 'gen', entries }))
    const input = { url: null, from: 'gen', output, path: 'in/', list: null, checksum: null }
    return site.attempt({ needs, inputs: [input] }, { manifests: { '0': digest } }).run()
  }

  test('inputs - winners that are more than the scratch space together are not begun', async () => {
    const entries = [0, 1, 2].map((index) => winner(index, 'o', 40_000))
    // Nothing asks for the first: it would be missing.
    rmSync(fileURLToPath(entries[0]!.url))
    expect(await gather(entries, 'o')).toMatchObject({ end: 'failed', reason: 'payload.scratch', wallMs: 0 })
    expect(await gather(entries.slice(1), 'o')).toMatchObject({ end: 'done' })
  })

  test('inputs - a winner that has grown is not the one that was promised', async () => {
    const entry = winner(0, 'o', 1000)
    writeFileSync(fileURLToPath(entry.url), Buffer.alloc(2000, 1))
    expect(await gather([entry], 'o')).toMatchObject({ end: 'failed', reason: 'stage.inputChecksum' })
    // No more of it is written than there was room made for.
    const target = join(folder.work, 'in')
    await expect(fetchWinner(entry, target, transfer())).rejects.toMatchObject({ code: 'stage.inputChecksum' })
    expect(existsSync(target)).toBe(false)
  })

  test('inputs - the list of winners is no part of the scratch space', async () => {
    const wanted = winner(0, 'o', 1000)
    const others = Array.from({ length: 1000 }, (_, index) => ({ ...wanted, index, output: 'p' }))
    expect(JSON.stringify(others).length).toBeGreaterThan(needs.scratchBytes)
    expect(await gather([wanted, ...others], 'o')).toMatchObject({ end: 'done' })
  })

  test('inputs - a list of winners that came in part leaves nothing', async () => {
    const server = createServer((_request, reply) => {
      reply.writeHead(200, { 'content-length': '100' })
      reply.write('half of it', () => reply.destroy())
    })
    await new Promise<void>((done) => server.listen(0, '127.0.0.1', done))
    const { client } = site.around().files()
    const files = () => ({ client, url: `http://127.0.0.1:${(server.address() as AddressInfo).port}` })
    const blobs = join(site.folder, 'blobs')
    const fetched = fetchManifest(`sha256:${'0'.repeat(64)}`, blobs, transfer({ files, giveUpAfterMs: 1 }))
    await expect(fetched).rejects.toMatchObject({ code: 'stage.inFailed' })
    expect(readdirSync(blobs)).toEqual([])
    await new Promise((done) => server.close(done))
  })
})
