/** The result of an attempt of which nothing is known but where it was: nothing ran, nothing was used, the node is at fault. */
import type { AttemptRef } from './ids.ts'
import type { Result } from './protocol/messages.ts'

/** All of a result but the attempt's name. */
export type ResultBody = Omit<Result, keyof AttemptRef>

export function noResult({ site, node, pilot }: Pick<Result, 'site' | 'node' | 'pilot'>): ResultBody {
  return {
    end: 'failed',
    reason: 'node.fault',
    detail: null,
    exitCode: null,
    signal: null,
    site,
    node,
    pilot,
    wallMs: 0,
    cpuMs: 0,
    maxRssBytes: 0,
    stageInMs: 0,
    stageOutMs: 0,
    outputs: [],
    stdoutBytes: 0,
    stderrBytes: 0,
    tail: null,
  }
}
