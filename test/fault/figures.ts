/**
 * The figures of a run by kind of fault: how often, how long it lasted, and how long until work went on again: from its
 * beginning to the first result acknowledged thereafter through something that it touched (faults.ts, touches). Pure.
 */
export interface Made {
  kind: string
  /** Null: it never began. */
  beganMs: number | null
  endedMs: number | null
  resumedMs: number | null
}

export interface KindFigures {
  kind: string
  /** Begun. */
  count: number
  /** Armed or chosen, and nothing was there to hit. */
  missed: number
  /** Seconds. */
  lastedS: number | null
  untilWork: { medianS: number; worstS: number } | null
  /** After which nothing more came by what they touched: the run's work was over. */
  open: number
}

export function figuresOf(made: readonly Made[]): KindFigures[] {
  const kinds = [...new Set(made.map(({ kind }) => kind))].sort()
  return kinds.map((kind) => {
    const all = made.filter((one) => one.kind === kind)
    const begun = all.filter((one): one is Made & { beganMs: number } => one.beganMs !== null)
    const until = begun.flatMap(({ beganMs, resumedMs }) => (resumedMs === null ? [] : [(resumedMs - beganMs) / 1000]))
    const lasted = begun.flatMap(({ beganMs, endedMs }) => (endedMs === null ? [] : [(endedMs - beganMs) / 1000]))
    return {
      kind,
      count: begun.length,
      missed: all.length - begun.length,
      lastedS: lasted.length === 0 ? null : round(median(lasted)),
      untilWork: until.length === 0 ? null : { medianS: round(median(until)), worstS: round(Math.max(...until)) },
      open: begun.length - until.length,
    }
  })
}

/** Of one number at least. */
export function median(numbers: readonly number[]): number {
  const sorted = [...numbers].sort((a, b) => a - b)
  const half = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[half]! : (sorted[half - 1]! + sorted[half]!) / 2
}

function round(seconds: number): number {
  return Math.round(seconds * 10) / 10
}

export function tableOf(figures: readonly KindFigures[]): string {
  const rows = figures.map(({ kind, count, missed, lastedS, untilWork, open }) => [
    kind,
    String(count),
    missed === 0 ? '' : String(missed),
    lastedS === null ? '' : lastedS.toFixed(1),
    untilWork === null ? '' : untilWork.medianS.toFixed(1),
    untilWork === null ? '' : untilWork.worstS.toFixed(1),
    open === 0 ? '' : String(open),
  ])
  const all = [['fault', 'made', 'missed', 'lasted s', 'until work s: median', 'worst', 'none after'], ...rows]
  const widths = all[0]!.map((_, column) => Math.max(...all.map((row) => row[column]!.length)))
  return all
    .map((row) => row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!))).join('  '))
    .join('\n')
}
