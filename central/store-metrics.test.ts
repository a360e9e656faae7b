import { Registry } from 'prom-client'
import { describe, expect, it } from 'vitest'
import type { HolderView, Starved } from './campaigns/model.ts'
import { HolderTotals, StoreMetrics } from './store-metrics.ts'

const holder = (name: string, counters: Record<string, number>, more: Partial<HolderView> = {}): HolderView => ({
  ...{ site: 'ALPHA', holder: name, role: 'relay', state: 'active', session: `s-${name}`, software: 'test' },
  ...{ lastSeenMs: 1_767_225_600_000, gauges: {}, counters },
  ...more,
})

describe('holder totals', () => {
  const started = (totals: HolderTotals, ...holders: HolderView[]) =>
    totals
      .news(holders)
      .filter(({ figure }) => figure.metric === 'indraft_pilot_tasks_started_total')
      .reduce((sum, { figure }) => sum + figure.value, 0)

  it('holder totals - only what was counted since the last look', () => {
    const totals = new HolderTotals()
    expect(started(totals, holder('a', { tasks_started: 100 }))).toBe(0)
    expect(started(totals, holder('a', { tasks_started: 107 }), holder('b', { tasks_started: 3 }))).toBe(10)
    expect(started(totals, holder('a', { tasks_started: 107 }), holder('b', { tasks_started: 3 }))).toBe(0)
  })

  it('holder totals - one that begins anew counts from nothing, whatever session it is listed under besides', () => {
    const totals = new HolderTotals()
    started(totals, holder('a', { tasks_started: 50 }))
    const old = holder('a', { tasks_started: 50 }, { state: 'lost' })
    const fresh = holder('a', { tasks_started: 4 }, { lastSeenMs: old.lastSeenMs + 1, session: 'new' })
    expect(started(totals, fresh, old)).toBe(4)
    expect(started(totals, old, fresh)).toBe(0)
  })
})

describe('store metrics', () => {
  const text = async (holders: HolderView[], starved: Partial<Starved>[] = []) => {
    const registry = new Registry()
    const store = { list: async () => [], pilots: async () => [], holders: async () => holders }
    const shown = { ...store, starved: async () => starved as Starved[] }
    await new StoreMetrics(registry).read(shown, async () => ({ sequence: 7, halted: true }))
    return (await registry.metrics()).split('\n')
  }

  it('store metrics - figures of pilots are added up by site, those of a relay stay its own, and nobody else is named', async () => {
    const relay = holder('r1', {}, { gauges: { cores: 8, bufferTasks: 5, linkUp: 1 } })
    const direct = holder('p1', {}, { role: 'pilot', gauges: { cores: 4, bufferTasks: 9 } })
    const lost = holder('r2', {}, { state: 'lost', gauges: { cores: 100, bufferTasks: 100 } })
    const lines = await text([relay, direct, lost])
    expect(lines).toContain('indraft_pilot_cores{site="ALPHA"} 12')
    expect(lines).toContain('indraft_relay_buffer_tasks{site="ALPHA",relay="r1"} 5')
    expect(lines).toContain('indraft_relay_last_heard_timestamp_seconds{site="ALPHA",relay="r1"} 1767225600')
    expect(lines).toContain('indraft_sessions{site="ALPHA",role="relay",state="lost"} 1')
    expect(lines.filter((line) => /"(p1|r2)"/.test(line))).toEqual([])
  })

  it('store metrics - starved bundles count once, however many wait for them', async () => {
    const one = { group: '/g', campaign: 'c1', step: 's', site: 'ALPHA', bundles: 3 }
    const lines = await text([], [one, { ...one, bundles: 2 }, { ...one, step: 't', bundles: 4 }])
    expect(lines).toContain('indraft_bundles_starved{group="/g",site="ALPHA"} 7')
  })

  it('store metrics - without work and holders the store is shown all the same', async () => {
    const lines = await text([])
    expect(lines).toContain('indraft_store_sequence 7')
    expect(lines).toContain('indraft_store_halted 1')
  })
})
