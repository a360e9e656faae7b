/** Handlers that give out files: outputs that the centre keeps, and logs, which sites send when somebody asks. */
import { IndraftError } from '../../shared/errors.ts'
import { type AttemptFiles, isForeign } from '../../shared/files/attempt-files.ts'
import type { AttemptRef, CampaignId } from '../../shared/ids.ts'
import type { Result } from '../../shared/protocol/messages.ts'
import type { CampaignStore } from '../campaigns/model.ts'
import { findCampaign, findTask, readCursor, requireStep, writeCursor } from './campaigns.ts'
import type { Handlers } from './server.ts'

export interface OutputParts {
  store: CampaignStore
  attempts: AttemptFiles
  /** After this long a log that was asked for is worth looking for again. */
  logRetryMs: number
}

export function outputHandlers(parts: OutputParts): Pick<Handlers, 'taskLog' | 'listOutputs' | 'getOutput'> {
  const { store, attempts, logRetryMs } = parts
  return {
    async taskLog({ params, query }, caller) {
      const campaign = await findCampaign(store, params.campaign, caller)
      const task = await findTask(store, campaign, params.step, params.index)
      const result = pickAttempt(task.history, query.attempt)
      const found = await attempts.find(result, `.log/${params.stream}`)
      if (found) return found
      if ((params.stream === 'stdout' ? result.stdoutBytes : result.stderrBytes) === 0) return 'empty'
      await store.requestLog(attemptOf(result), result.site, params.stream)
      return { retryAfterMs: logRetryMs }
    },
    async listOutputs({ params, query }, caller) {
      const campaign = await findCampaign(store, params.campaign, caller)
      if (query.step !== undefined) requireStep(campaign, query.step)
      const filter = { state: 'done' as const, ...(query.step && { step: query.step }) }
      const page = await store.tasks(campaign.id, filter, readCursor(query.from), query.limit)
      const outputs = []
      for (const [step, rows] of Map.groupBy(page.rows, (row) => row.step)) {
        const indices = rows.map(({ index }) => index)
        const found = await store.outputs(campaign.id as CampaignId, step, indices)
        for (const [i, index] of indices.entries()) {
          // Logs are kept like outputs, and may still lie at the site: taskLog asks for them.
          const shown = found[i]!.filter(({ path }) => !path.startsWith('.log/'))
          outputs.push(...shown.map((output) => ({ step, index, ...output })))
        }
      }
      return { outputs, next: writeCursor(page.next) }
    },
    async getOutput({ params }, caller) {
      const campaign = await findCampaign(store, params.campaign, caller)
      const task = await findTask(store, campaign, params.step, params.index)
      const output = task.outputs.find(({ path }) => path === params['*'])
      if (!output) {
        const known = task.outputs.map(({ path }) => path).join(', ') || 'none'
        throw new IndraftError('request.notFound', `no output "${params['*']}" of this task; there are: ${known}`)
      }
      if (!output.url.startsWith('store:')) {
        throw new IndraftError('request.notFound', `the centre does not keep ${output.path}: it is at ${output.url}`)
      }
      const winner = task.winner
      // What names another attempt's file would open it to who may not read that one.
      const isOwn = winner !== null && !isForeign(winner, output)
      const file = isOwn ? await attempts.find(winner, output.path) : null
      if (!file) throw new IndraftError('request.notFound', `${output.path} is no longer there`)
      return file
    },
  }
}

/** @throws IndraftError request.notFound */
function pickAttempt(history: readonly Result[], attempt: number | undefined): Result {
  const picked = attempt === undefined ? history.at(-1) : history[attempt - 1]
  if (picked) return picked
  const there = history.length === 0 ? 'no attempt has ended yet' : `attempts 1 to ${history.length} have ended`
  throw new IndraftError('request.notFound', `there is no such log: ${there}`, { path: 'attempt' })
}

function attemptOf({ campaign, step, index, bundle, fences }: Result): AttemptRef {
  return { campaign, step, index, bundle, fences } as unknown as AttemptRef
}
