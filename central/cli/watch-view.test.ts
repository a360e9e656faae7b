import { expect, test } from 'vitest'
import { emptyCounts, sumCounts } from '../../shared/lifecycle.ts'
import type { Reply } from '../api/routes.ts'
import { bar, changeLine, drawCampaign, endLines, Progress } from './watch-view.ts'

type Campaign = Reply<'showCampaign'>

function campaign(more: Partial<Campaign> = {}): Campaign {
  const counts = { ...emptyCounts(), done: 40, running: 20, queued: 39, failed: 1 }
  const later = { ...emptyCounts(), blocked: 1 }
  const step = { after: [], needs: {} as never, meanWallMs: null }
  return {
    id: 'c1',
    name: 'ising',
    group: '/demo',
    subject: 'ada',
    activity: 'production',
    priority: 5,
    desired: 'run',
    desiredVersion: 1,
    state: 'running',
    createdAtMs: 0,
    endedAtMs: null,
    counts: sumCounts([counts, later]),
    steps: [
      { ...step, name: 'simulate', size: 100, counts },
      { ...step, name: 'merge', size: 1, counts: later },
    ],
    failures: [{ step: 'simulate', reason: 'payload.exit', detail: 'exit 134', count: 3 }],
    ...more,
  }
}

test('watch - a bar shows what has ended and what is at work', () => {
  expect(bar(campaign().steps[0]!)).toBe('[########>>>>........]')
  expect(bar(campaign().steps[1]!)).toBe('[....................]')
})

test('watch - the picture has every step, the sites and the failures', () => {
  const progress = new Progress()
  progress.saw(campaign({ counts: { ...campaign().counts, done: 0 } }), 0)
  progress.saw(campaign(), 20_000)
  const relay = { site: 'LUMI', holder: 'relay', role: 'relay' as const, session: 's', software: '', counters: {} }
  const lines = drawCampaign(
    {
      campaign: campaign(),
      holders: [{ ...relay, state: 'lost', lastSeenMs: 0, gauges: { bufferTasks: 12 } }],
      pilots: [],
    },
    progress,
    2_520_000,
  )
  const text = lines.join('\n')
  expect(lines[0]).toMatch(/^ising {3}\/demo {3}running 42 min {3}priority 5/)
  expect(lines[1]).toMatch(/^60 tasks to go, ends ~.* \(2\.0 tasks\/s\)$/)
  expect(text).toMatch(/^simulate +100 \[########>>>>\.+\] +41 % /m)
  expect(text).toMatch(/^LUMI +CUT 42 min +0 +0 +0\/0 +12$/m)
  expect(text).toContain('simulate: 3 payload.exit  exit 134')
})

test('watch - no rate is claimed before something ended under our eyes', () => {
  const progress = new Progress()
  progress.saw(campaign(), 0)
  progress.saw(campaign(), 60_000)
  expect(progress.rate).toBeUndefined()
})

test('watch - plain lines change with the counts and say how it ended', () => {
  expect(changeLine(campaign())).toBe('ising running: simulate 40/100 done, 20 running, 1 failed | merge 0/1 done')
  const ended = campaign({ state: 'done with failures', endedAtMs: 61_000 })
  expect(endLines(ended)).toEqual([
    'ising: done with failures after 1 min 1 s (40 done, 1 failed)',
    'next:  indraft campaign tasks ising --state failed',
  ])
})

test('watch - how long it took is by one clock, never negative, and not said before it is known', () => {
  const over = { state: 'done', counts: { ...emptyCounts(), done: 1 } } as const
  const head = (more: Partial<Campaign>) => endLines(campaign({ ...over, ...more }))[0]
  expect(head({ createdAtMs: 5000, endedAtMs: 4385 })).toBe('ising: done after 0 ms (1 done)')
  expect(head({ createdAtMs: Date.now() + 60_000, endedAtMs: null })).toBe('ising: done (1 done)')
})
