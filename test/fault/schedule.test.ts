import { expect, test } from 'vitest'
import { FAILPOINTS } from '../../shared/failpoint.ts'
import { describeFault, drawSchedule, kindOf, programOf, type ScheduleOptions } from './schedule.ts'

const options: ScheduleOptions = {
  seed: 7,
  tasks: 2000,
  faults: 60,
  waves: [500, 500, 500, 500, 60].map((tasks) => ({ tasks, isCancelled: tasks === 60 })),
  sites: { alpha: ['alpha-1', 'alpha-2'], beta: ['beta-1'] },
  relays: { alpha: ['alpha', 'alpha-second'] },
  centrals: 2,
  able: { clock: true, disk: true },
}

test('schedule - the same seed is the same schedule, another seed another one', () => {
  expect(drawSchedule(options)).toEqual(drawSchedule({ ...options }))
  expect(drawSchedule({ ...options, seed: 8 })).not.toEqual(drawSchedule(options))
})

test('schedule - sixty faults hold every kind that is drawn, in the order of their points, before the work ends', () => {
  const { faults } = drawSchedule(options)
  expect(faults).toHaveLength(60)
  const points = faults.map(({ at }) => at)
  expect(points).toEqual([...points].sort((a, b) => a - b))
  expect(Math.max(...points)).toBeLessThan(0.96 * options.tasks)
  const killed = new Set(faults.filter(({ kind }) => kind === 'kill' || kind === 'stop').map(kindOf))
  for (const part of ['central', 'redis', 'nats', 'relay', 'relay-nats', 'pilot', 'payload']) {
    expect(killed).toContain(`kill ${part}`)
    expect(killed).toContain(`stop ${part}`)
  }
  const kinds = new Set(faults.map(({ kind }) => kind))
  for (const kind of ['link', 'delay', 'replay', 'failpoint', 'error', 'disk', 'clock', 'journal', 'node', 'away']) {
    expect(kinds).toContain(kind)
  }
})

test('schedule - what a machine cannot do is not drawn', () => {
  const { faults } = drawSchedule({ ...options, able: { clock: false, disk: false } })
  expect(faults).toHaveLength(60)
  expect(faults.filter(({ kind }) => kind === 'clock' || kind === 'disk')).toEqual([])
})

test('schedule - every wave is submitted once, what is paused is resumed, and one is cancelled', () => {
  const { doings } = drawSchedule(options)
  const of = (what: string) => doings.filter((doing) => doing.what === what).map(({ wave }) => wave)
  expect(of('submit').sort()).toEqual([0, 1, 2, 3, 4])
  expect(of('cancel')).toEqual([4])
  expect(of('pause')).toEqual(of('resume'))
})

test('schedule - every failpoint belongs to a program, so that it can be armed there', () => {
  for (const name of Object.keys(FAILPOINTS) as (keyof typeof FAILPOINTS)[]) {
    expect(['central', 'relay', 'pilot'], name).toContain(programOf(name))
  }
})

test('schedule - a fault is said in one line with its kind, its target and its numbers', () => {
  expect(describeFault({ kind: 'kill', target: { part: 'central', number: 2 }, downMs: 300 })).toBe(
    'kill central central-2 downMs=300',
  )
})

test('schedule - in every run a helper dies half-way through feeding, releasing and publishing', () => {
  for (let seed = 0; seed < 20; seed++) {
    const kinds = drawSchedule({ ...options, seed }).faults.map(kindOf)
    for (const what of ['feeding', 'releasing', 'publishing']) expect(kinds).toContain(`half-way ${what}`)
  }
})

test('schedule - a relay that goes away has another one at its site; both meet every kind that is theirs', () => {
  const drawn = Array.from({ length: 60 }, (_, seed) => drawSchedule({ ...options, seed }).faults).flat()
  const away = drawn.flatMap((fault) => (fault.kind === 'away' ? [fault.relay] : []))
  expect(new Set(away)).toEqual(new Set(['alpha', 'alpha-second']))
  for (const kind of ['link', 'delay', 'replay', 'journal']) {
    const met = drawn.flatMap((fault) =>
      'relay' in fault && fault.kind === kind ? [`${fault.site}/${fault.relay}`] : [],
    )
    expect(new Set(met), kind).toEqual(new Set(['alpha/alpha', 'alpha/alpha-second', 'beta/beta']))
  }
})

test('schedule - what failed of a campaign is tried again after most of it is over', () => {
  const { doings } = drawSchedule(options)
  for (const { at, wave } of doings.filter(({ what }) => what === 'retry')) {
    expect(at).toBeGreaterThan(doings.find((doing) => doing.what === 'submit' && doing.wave === wave)!.at)
  }
  expect(doings.filter(({ what }) => what === 'retry').map(({ wave }) => wave)).toEqual([0, 3])
})
