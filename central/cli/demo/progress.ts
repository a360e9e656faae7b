/** Progress of a campaign's steps: bars on a terminal, otherwise a line whenever something worth a line has happened. */
import { MultiBar, type SingleBar } from 'cli-progress'
import type { CampaignView } from '../../campaigns/model.ts'

const LINE_EVERY_MS = 2_000

export interface Progress {
  show(view: Pick<CampaignView, 'steps'>): void
  /** A line that stays, above the bars. */
  note(line: string): void
  end(): void
}

export function makeProgress(isTerminal: boolean, write: (line: string) => void = console.log): Progress {
  return isTerminal ? bars() : lines(write)
}

function bars(): Progress {
  const all = new MultiBar({
    format: '  {step} [{bar}] {value}/{total}  {running} running, {assigned} handed out',
    barCompleteChar: '#',
    barIncompleteChar: '.',
    barsize: 36,
    hideCursor: true,
    stopOnComplete: false,
    clearOnComplete: false,
  })
  const byStep = new Map<string, SingleBar>()
  return {
    show({ steps }) {
      for (const { name, size, counts } of steps) {
        const fields = { step: name.padEnd(10), running: counts.running, assigned: counts.assigned }
        const bar = byStep.get(name)
        if (bar) bar.update(counts.done, fields)
        else byStep.set(name, all.create(size, counts.done, fields))
      }
    },
    note: (line) => all.log(`${line}\n`),
    end() {
      all.update()
      all.stop()
    },
  }
}

function lines(write: (line: string) => void): Progress {
  let shownAtMs = Number.NEGATIVE_INFINITY
  let shown = ''
  return {
    show({ steps }) {
      const text = steps.map(({ name, size, counts }) => `${name} ${counts.done}/${size}`).join('   ')
      const isOver = steps.every(({ size, counts }) => counts.done === size)
      if (text === shown || (performance.now() - shownAtMs < LINE_EVERY_MS && !isOver)) return
      shown = text
      shownAtMs = performance.now()
      write(`  ${text}`)
    },
    note: write,
    end() {},
  }
}
