/** Who is to blame for an end that was not ordered, with real files; a full disk is in test/lab/bad-sites.test.ts. */
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, utimesSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { AttemptFolder } from './attempt-folder.ts'
import { type Exit, judgeExit } from './blame.ts'
import { hostRuntime } from './container.ts'
import { PATH, TestSite } from './testbench.ts'
import { parseStatus } from './wrapper.ts'

let site: TestSite
let images: string
beforeEach(async () => {
  site = await new TestSite().open()
  images = join(site.folder, 'images')
  mkdirSync(images)
})
afterEach(async () => {
  await site.close()
})

const CONTENT = 'an image, as far as anybody reads it here'
const ended = (more: Partial<Exit>): Exit => ({
  ...{ status: parseStatus('started\nend\n'), exitCode: 1, signal: null, said: '', ...more },
})

/** The reason, with the parts that a pilot has. */
function judging(image: string) {
  const { images, digests, watcher, oom } = site.around()
  const folder = new AttemptFolder(join(site.folder, 'attempt'))
  mkdirSync(folder.path, { recursive: true })
  const around = {
    attempt: 'a',
    command: 'x',
    image,
    folder,
    runtime: hostRuntime(PATH),
    images,
    digests,
    watcher,
    oom,
  }
  const judge = (exit: Partial<Exit>) =>
    judgeExit(ended(exit), { ...around, oomBefore: oom.known }).then(
      () => null,
      ({ code }) => code,
    )
  return { judge, digests, folder }
}

function put(path: string, content = CONTENT): string {
  writeFileSync(path, content)
  utimesSync(path, 1_700_000_000, 1_700_000_000)
  return path
}

/** As a bad disk or a bad mount does it: the file's times and its size are what they were. */
function damage(path: string): void {
  put(path, CONTENT.replace('image', 'imago'))
}

describe('damage in a part of the image that only the payload reads', () => {
  const SIGNS: [string, Partial<Exit>, string][] = [
    ['a program that cannot be executed', { exitCode: 126 }, 'payload.exit'],
    ['a page that cannot be read', { exitCode: 135, signal: 'SIGBUS' }, 'payload.signal'],
    ['a file that cannot be read', { exitCode: 1, said: 'OSError: [Errno 5] Input/output error' }, 'payload.exit'],
  ]

  test.each(SIGNS)('blame - %s: an image by URL that changed is removed, a sound one is not', async (_, exit, own) => {
    const path = put(join(images, `${createHash('sha256').update(CONTENT).digest('hex')}.sif`))
    const { judge } = judging(path)
    expect(await judge(exit)).toBe(own)
    damage(path)
    // Another pilot: this one has found it sound.
    expect(await judging(path).judge(exit)).toBe('image.damaged')
    expect(existsSync(path)).toBe(false)
  })

  test('blame - an image by path that is not what it was', async () => {
    const path = put(join(site.folder, 'site.sif'))
    const { judge, digests } = judging(path)
    await digests.of(path)
    damage(path)
    expect(await judge({ exitCode: 126 })).toBe('image.damaged')
    expect(existsSync(path)).toBe(true)
    // Ends that damage does not explain ask no image.
    expect(await judge({ exitCode: 3 })).toBe('payload.exit')
    expect(await judge({ signal: 'SIGSEGV' })).toBe('payload.signal')
  })

  test('blame - an image found sound is not read again for every task that fails', async () => {
    const path = put(join(site.folder, 'site.sif'))
    const { judge } = judging(path)
    expect(await judge({ exitCode: 126 })).toBe('payload.exit')
    damage(path)
    expect(await judge({ exitCode: 126 })).toBe('payload.exit')
  })

  test('blame - neither a folder nor the host has a content to compare', async () => {
    expect(await judging(site.folder).judge({ exitCode: 126 })).toBe('payload.exit')
    expect(await judging('host').judge({ exitCode: 126 })).toBe('payload.exit')
  })
})

test('blame - the look for room leaves nothing in the attempt’s folder', async () => {
  const { judge, folder } = judging('host')
  expect(await judge({ exitCode: 3 })).toBe('payload.exit')
  expect(await judge({ exitCode: 0 })).toBeNull()
  expect(readdirSync(folder.path)).toEqual([])
})
