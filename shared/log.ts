/**
 * One JSON line per step, on standard error, through pino. Lines about work carry campaign, task, attempt and pilot
 * under those names, so that one grep is the history of a task. Levels: debug (per message), info (state changed),
 * warn (refused, retried, degraded), error (needs a person).
 */
import { type Logger, pino, stdSerializers } from 'pino'

export type Log = Logger
export type LogLevel = 'debug' | 'info' | 'warn' | 'error' | 'silent'

export function makeLog(program: string, level: LogLevel, destination = 2): Log {
  return pino(
    {
      level,
      base: { program },
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
      serializers: { err: describeError },
    },
    pino.destination({ dest: destination, sync: true }),
  )
}

/**
 * An error without what the Redis client hangs on to it: the whole text of the script, and arguments that may hold
 * secrets. Only the command's name stays.
 */
function describeError(error: unknown): unknown {
  const described: unknown = error instanceof Error ? stdSerializers.err(error) : error
  if (typeof described !== 'object' || described === null) return described
  const { command, ...rest } = described as { command?: { name?: unknown } }
  return command === undefined ? rest : { ...rest, command: command.name }
}

export const silentLog: Log = pino({ level: 'silent' })
