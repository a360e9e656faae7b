/** A relay's process is alone in its folder, and ends by itself where it was told to. */
import { describe, expect, it } from 'vitest'
import { joinedRelay } from './joined.ts'
import { spawnRelay } from './relay-process.ts'

const at = joinedRelay('ENDS', { timeScale: 0.05 })

describe('relay - ends by itself', () => {
  it('relay - a second one in its folder does not start; with --once that is no failure', async () => {
    expect(await spawnRelay(at.settings).exited).toBe(1)
    expect(await spawnRelay([...at.settings, '--once']).exited).toBe(0)
  })

  it('relay - with --once it ends when nothing is left to do, and the journal is kept', async () => {
    at.relay.kill('SIGTERM')
    expect(await at.relay.exited).toBe(0)
    const once = at.start('--once')
    const { incarnation } = await once.said('journal.read')
    expect(await once.exited).toBe(0)
    const brief = at.start('--for', '1s')
    expect((await brief.said('journal.read')).incarnation).toBe(incarnation)
    expect(await brief.exited).toBe(0)
  })
})
