import { describe, expect, it } from 'vitest'
import { formatBytes, formatDuration, parseBytes, parseDuration } from './quantity.ts'

describe('quantity - bytes', () => {
  it.each([
    ['0B', 0],
    ['1B', 1],
    ['500MB', 500e6],
    ['2GiB', 2 * 2 ** 30],
    ['1.5 KiB', 1536],
    [' 3TB ', 3e12],
    ['1kB', 1000],
  ])('%s', (text, bytes) => {
    expect(parseBytes(text)).toBe(bytes)
  })

  it.each([
    '',
    '5',
    '5 gb',
    '5G',
    '-1B',
    '1e3B',
    'GiB',
    '1..5GiB',
    '1GiB2',
    'NaNB',
    '5mB',
    '99999999999999TiB',
    `${'9'.repeat(400)}B`,
  ])('"%s" is refused', (text) => {
    expect(parseBytes(text)).toBeUndefined()
  })

  it.each([
    [0, '0 B'],
    [812, '812 B'],
    [1536, '1.5 KiB'],
    [16 * 2 ** 30, '16 GiB'],
    [1234567, '1.18 MiB'],
  ])('%d is shown', (bytes, text) => {
    expect(formatBytes(bytes)).toBe(text)
  })
})

describe('quantity - durations', () => {
  it.each([
    ['250ms', 250],
    ['90s', 90_000],
    ['1h30m', 5_400_000],
    ['1 h 30 min', 5_400_000],
    ['2d', 172_800_000],
    ['0.5s', 500],
  ])('%s', (text, ms) => {
    expect(parseDuration(text)).toBe(ms)
  })

  it.each(['', '5', '5 hours', '12:00:00', '-1s', 's', '1h30', '1,5h', '1e3s', `${'9'.repeat(400)}d`, '999999999999d'])(
    '"%s" is refused',
    (text) => {
      expect(parseDuration(text)).toBeUndefined()
    },
  )

  it.each([
    [0, '0 ms'],
    [850, '850 ms'],
    [999.9, '1 s'],
    [90_000, '1 min 30 s'],
    [3_600_000, '1 h'],
    [(2 * 24 + 3) * 3_600_000 + 59_000, '2 d 3 h'],
  ])('%d is shown', (ms, text) => {
    expect(formatDuration(ms)).toBe(text)
  })

  it('a long text without units ends quickly', () => {
    expect(parseDuration('1'.repeat(50_000))).toBeUndefined()
    expect(parseBytes('1'.repeat(50_000))).toBeUndefined()
    expect(parseDuration(`${'1 s '.repeat(20_000)}x`)).toBeUndefined()
  })
})
