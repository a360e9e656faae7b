import { expect, test } from 'vitest'
import { axisSize, expand, namesIn, sweepSize, valuesOf } from './expand.ts'

const template = {
  campaign: 'c0000000001',
  campaignName: 'ising',
  step: 'simulate',
  axes: null,
  needs: { cores: 2, memoryBytes: 1024 },
}

test('expand - replaces names, keeps escapes, never expands what it put in', () => {
  const values = { T: '2.1', cell: '$(T)', empty: '' }
  expect(expand('t=$(T) $$(T) $HOME $(empty)|$(cell)', values)).toBe('t=2.1 $(T) $HOME |$(T)')
})

test.each([
  ['$(nothing)', /\$\(nothing\) is not known here; there are: T/],
  ['a $(T', /not closed/],
  ['$(toString)', /not known/],
  ['$()', /not known/],
])('expand - %s is refused with what was expected', (text, message) => {
  expect(() => expand(text, { T: '1' })).toThrow(message)
})

test('expand - lists the names of a text once', () => {
  expect(namesIn('$(a)-$(b)-$(a)-$$(c)')).toEqual(['a', 'b'])
})

test('sweep - the last axis varies fastest and decimal steps stay clean', () => {
  const axes = [
    { name: 'T', values: { from: 1, to: 2, step: 0.1 } },
    { name: 'seed', values: ['x', 'y', 'z'] },
  ]
  expect(sweepSize(axes)).toBe(33)
  const of = (index: number) => valuesOf({ ...template, axes }, { tasks: '0-32', rows: null }, index)
  expect([of(0).T, of(0).seed, of(1).seed, of(3).T, of(32).T, of(32).seed]).toEqual(['1', 'x', 'y', '1.1', '2', 'z'])
  expect(() => of(33)).toThrow(/beyond the sweep/)
})

test('sweep - an axis that leads away from its end has no values', () => {
  expect(axisSize({ name: 'a', values: { from: 1, to: 0, step: 1 } })).toBe(0)
  expect(axisSize({ name: 'a', values: { from: 1, to: 0, step: -0.5 } })).toBe(3)
})

test('table - a row is found by its place among the bundle tasks; built-in names win', () => {
  const bundle = { tasks: '3-4,9', rows: [{ run: 'a' }, { run: 'b' }, { run: 'c', index: 'mine' }] }
  expect(valuesOf(template, bundle, 9, 2)).toEqual({
    run: 'c',
    index: '9',
    campaign: 'ising',
    campaign_id: 'c0000000001',
    step: 'simulate',
    cores: '2',
    memory: '1024',
    attempt: '3',
  })
  expect(() => valuesOf(template, bundle, 5)).toThrow(/no row/)
})
