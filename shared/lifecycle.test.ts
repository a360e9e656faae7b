import { describe, expect, it } from 'vitest'
import {
  attemptTable,
  bundleTable,
  type Counts,
  campaignState,
  desiredTable,
  ENDED_TASK_STATES,
  emptyCounts,
  isCampaignOver,
  leaseTable,
  mustNextState,
  nextState,
  openTasks,
  pilotTable,
  relayTable,
  sumCounts,
  TASK_STATE_CODE,
  TASK_STATES,
  taskTable,
} from './lifecycle.ts'

type Arrows = Record<string, Record<string, string>>
const TABLES: { thing: string; table: Arrows; first: string[]; final: string[] }[] = [
  { thing: 'task', table: taskTable, first: ['blocked', 'queued'], final: ['done', 'cancelled'] },
  { thing: 'attempt', table: attemptTable, first: ['accepted'], final: ['given-back', 'acknowledged'] },
  { thing: 'lease', table: leaseTable, first: ['provisional'], final: ['expired', 'returned', 'closed'] },
  { thing: 'bundle', table: bundleTable, first: ['queued'], final: ['closed'] },
  { thing: 'pilot', table: pilotTable, first: ['active'], final: ['left'] },
  { thing: 'relay', table: relayTable, first: ['active'], final: [] },
  { thing: 'campaign', table: desiredTable, first: ['run'], final: ['cancelled'] },
]

describe.each(TABLES)('lifecycle - $thing', ({ thing, table, first, final }) => {
  it('every arrow leads to a state of the table', () => {
    for (const arrows of Object.values(table)) {
      for (const next of Object.values(arrows)) expect(Object.keys(table)).toContain(next)
    }
  })

  it('exactly the final states have no arrows', () => {
    const ends = Object.entries(table).filter(([, arrows]) => Object.keys(arrows).length === 0)
    expect(ends.map(([state]) => state).sort()).toEqual([...final].sort())
  })

  it('every state can be reached', () => {
    const reached = new Set(first)
    for (const state of reached) for (const next of Object.values(table[state]!)) reached.add(next)
    expect([...reached].sort()).toEqual(Object.keys(table).sort())
  })

  it('events are facts about the thing', () => {
    for (const arrows of Object.values(table)) {
      for (const event of Object.keys(arrows)) expect(event).toMatch(new RegExp(`^${thing}\\.[a-z][A-Za-z]+$`))
    }
  })

  it('an event that a state does not list is undefined from a peer and a bug from ourselves', () => {
    const events = new Set(Object.values(table).flatMap((arrows) => Object.keys(arrows)))
    for (const state of Object.keys(table)) {
      for (const event of [...events, 'toString', '__proto__', 'constructor']) {
        const expected = Object.hasOwn(table[state]!, event) ? table[state]![event] : undefined
        expect([state, event, nextState(table, state, event)]).toEqual([state, event, expected])
        if (expected === undefined) expect(() => mustNextState(table, state, event)).toThrow(event)
        else expect(mustNextState(table, state, event)).toBe(expected)
      }
    }
  })
})

describe('lifecycle - task states', () => {
  it('TASK_STATE_CODE gives each state its own four-bit code', () => {
    expect(Object.keys(TASK_STATE_CODE).sort()).toEqual(Object.keys(taskTable).sort())
    expect([...TASK_STATES].sort()).toEqual(Object.keys(taskTable).sort())
    const codes = Object.values(TASK_STATE_CODE)
    expect(new Set(codes).size).toBe(codes.length)
    for (const code of codes) expect(code >= 0 && code < 16).toBe(true)
  })

  it('released codes never change', () => {
    expect(TASK_STATE_CODE).toEqual({
      blocked: 0,
      queued: 1,
      assigned: 2,
      running: 3,
      done: 4,
      failed: 5,
      held: 6,
      skipped: 7,
      cancelled: 8,
    })
  })

  it('a late success wins over everything but an end', () => {
    for (const state of TASK_STATES) {
      const next = nextState(taskTable, state, 'task.finished')
      expect([state, next]).toEqual([
        state,
        ['queued', 'assigned', 'running', 'held'].includes(state) ? 'done' : undefined,
      ])
    }
  })

  it('open and ended states together are all states', () => {
    const one = (state: string) => openTasks({ ...emptyCounts(), [state]: 1 })
    for (const state of TASK_STATES) {
      expect(one(state)).toBe((ENDED_TASK_STATES as readonly string[]).includes(state) ? 0 : 1)
    }
  })

  it('counts add up', () => {
    const a: Counts = { ...emptyCounts(), done: 2, held: 1 }
    expect(sumCounts([a, a, emptyCounts()])).toEqual({ ...emptyCounts(), done: 4, held: 2 })
    expect(sumCounts([])).toEqual(emptyCounts())
  })
})

describe('lifecycle - what a campaign is shown as', () => {
  it.each([
    ['run', {}, 'done'],
    ['run', { done: 5 }, 'done'],
    ['run', { done: 5, failed: 1 }, 'done with failures'],
    ['run', { done: 5, skipped: 1 }, 'done with failures'],
    ['run', { queued: 1, done: 5 }, 'running'],
    ['run', { held: 1, done: 5 }, 'held'],
    ['run', { held: 1, blocked: 3 }, 'held'],
    ['run', { blocked: 3 }, 'running'],
    ['run', { held: 1, running: 1 }, 'running'],
    ['paused', { queued: 1 }, 'paused'],
    ['paused', { done: 1 }, 'done'],
    ['cancelled', { running: 1 }, 'cancelling'],
    ['cancelled', { held: 1 }, 'cancelling'],
    ['cancelled', { cancelled: 5, done: 1 }, 'cancelled'],
  ] as const)('%s with %o is %s', (desired, counts, state) => {
    expect(campaignState(desired, { ...emptyCounts(), ...counts })).toBe(state)
    const over = openTasks({ ...emptyCounts(), ...counts }) === 0
    expect(isCampaignOver(state)).toBe(over)
  })
})
