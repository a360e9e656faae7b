/** Which step waits for which, from `after`; steps that do not exist and circles are found here. */
import type { StepName } from '../../shared/ids.ts'
import { nearestWord } from './form.ts'
import type { CampaignFile, StepFile } from './format.ts'
import type { FieldPath, Report } from './source.ts'

export interface After {
  step: StepName
  /** 0 to 1. */
  accept: number
}

export function readAfter(name: string, step: StepFile, file: CampaignFile, report: Report): After[] {
  if (step.after === undefined) return []
  const isList = Array.isArray(step.after)
  const entries = Array.isArray(step.after) ? step.after : [step.after]
  const seen = new Set<string>()
  return entries.flatMap((entry, at) => {
    const path: FieldPath = [
      'steps',
      name,
      'after',
      ...(isList ? [at] : []),
      ...(typeof entry === 'string' ? [] : ['step']),
    ]
    const { step: earlier, accept } = typeof entry === 'string' ? { step: entry, accept: undefined } : entry
    if (!Object.hasOwn(file.steps, earlier)) {
      const known = Object.keys(file.steps).filter((other) => other !== name)
      report(path, () => {
        const nearest = nearestWord(earlier, known)
        return `there is no step "${earlier}"${nearest ? `: did you mean ${nearest}?` : `; steps: ${known.join(', ')}`}`
      })
      return []
    }
    if (seen.has(earlier)) report(path, `"${earlier}" is named twice`)
    seen.add(earlier)
    return [{ step: earlier as StepName, accept: accept === undefined ? 1 : Number.parseFloat(accept) / 100 }]
  })
}

/** Reports each circle once, at the step that closes it. */
export function findCircles(after: ReadonlyMap<string, readonly After[]>, report: Report): void {
  const done = new Set<string>()
  const walk = (name: string, trail: string[]): void => {
    const at = trail.indexOf(name)
    if (at >= 0) {
      const circle = [...trail.slice(at), name]
      report(['steps', trail.at(-1)!, 'after'], `the steps wait for each other in a circle: ${circle.join(' -> ')}`)
      return
    }
    if (done.has(name)) return
    for (const { step } of after.get(name) ?? []) walk(step, [...trail, name])
    done.add(name)
  }
  for (const name of after.keys()) walk(name, [])
}
