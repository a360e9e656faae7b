/** Real files; time is moved by hand. */
import { mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { type ManualClock, manualClock } from '../test/manual-clock.ts'
import { Queue, type Turn } from './turn.ts'

let folder: string
let path: string
let clock: ManualClock
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-turn-'))
  path = join(folder, 'turn')
  clock = manualClock()
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

async function until(isSo: () => boolean): Promise<void> {
  while (!isSo()) await new Promise((done) => setTimeout(done, 2))
}

test('turn - one of many has it, the others after it, by words of their own', async () => {
  const queues = Array.from({ length: 10 }, () => new Queue(path, clock))
  const words: string[] = []
  for (const _ of queues) {
    const turns = (await Promise.all(queues.map((queue) => queue.take()))).filter((turn) => turn !== null)
    expect(turns).toHaveLength(1)
    words.push(turns[0]!.word)
    await turns[0]!.end()
  }
  expect(new Set(words)).toHaveLength(queues.length)
  expect(readdirSync(folder)).toEqual([])
})

test('turn - one that shows itself is never put aside, however long it takes', async () => {
  const turn = (await new Queue(path, clock).take())!
  const waiting = new Queue(path, clock)
  for (let time = 0; time < 12; time++) {
    expect(await waiting.take()).toBeNull()
    const before = statSync(path).mtimeMs
    await until(() => clock.sleeping > 0)
    await clock.advance(5_000)
    await until(() => statSync(path).mtimeMs !== before)
  }
  expect(waiting.owner).toBe(turn.word)
  expect(waiting.aside).toEqual([])
  expect(await turn.isHeld()).toBe(true)
  await turn.end()
})

test('turn - of many that find one standing still one puts it aside and one has it next', async () => {
  for (let round = 0; round < 20; round++) {
    writeFileSync(path, `dead ${round}`)
    const queues = Array.from({ length: 5 }, () => new Queue(path, clock))
    for (const queue of queues) expect(await queue.take()).toBeNull()
    await clock.advance(31_000)
    const turns: Turn[] = []
    while (turns.length === 0) {
      const taken = await Promise.all(queues.map((queue) => queue.take()))
      turns.push(...taken.filter((turn) => turn !== null))
    }
    expect(queues.flatMap(({ aside }) => aside)).toEqual([`dead ${round}`])
    expect((await Promise.all(turns.map((turn) => turn.isHeld()))).filter((isHeld) => isHeld)).toHaveLength(1)
    await Promise.all(turns.map((turn) => turn.end()))
    expect(readdirSync(folder)).toEqual([])
  }
})

test('turn - who was overtaken does not end the other’s', async () => {
  const turn = (await new Queue(path, clock).take())!
  writeFileSync(path, 'other')
  expect(await turn.isHeld()).toBe(false)
  await turn.end()
  expect(readdirSync(folder)).toEqual(['turn'])
})
