/**
 * One JSON line per step, on standard error, through pino. Lines about work carry campaign, task, attempt and pilot
 * under those names, so that one grep is the history of a task. Levels: debug (per message), info (state changed),
 * warn (refused, retried, degraded), error (needs a person).
 */
import { type Logger, pino } from 'pino'

export type Log = Logger
export type LogLevel = 'debug' | 'info' | 'warn' | 'error' | 'silent'

export function makeLog(program: string, level: LogLevel, destination = 2): Log {
  return pino(
    {
      level,
      base: { program },
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    pino.destination({ dest: destination, sync: true }),
  )
}

export const silentLog: Log = pino({ level: 'silent' })
