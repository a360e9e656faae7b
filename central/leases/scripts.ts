/**
 * The Lua scripts, one file each under scripts/, behind one call. A script's arguments go in and its answer comes out
 * as msgpack; raw bytes (packed results) follow as further arguments, because Redis's msgpack knows no binary type.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Redis } from 'ioredis'
import { pack, unpack } from '../../shared/protocol/codec.ts'

const FOLDER = join(import.meta.dirname, 'scripts')
const PRELUDE = readFileSync(join(FOLDER, 'prelude.lua'), 'utf8')

/** What a script takes: plain values only; null stands for a missing one. */
export type ScriptArgs = Record<string, unknown>

type Command = (key: string, ...args: (Uint8Array | string)[]) => Promise<unknown>

export class Scripts {
  readonly redis: Redis

  constructor(redis: Redis) {
    this.redis = redis
    for (const file of readdirSync(FOLDER)) {
      const name = file.replace(/\.lua$/, '')
      if (name === 'prelude') continue
      const lua = `${PRELUDE}\n${readFileSync(join(FOLDER, file), 'utf8')}`
      redis.defineCommand(commandOf(name), { numberOfKeys: 1, lua })
    }
  }

  /** Runs a script on one group's or site's keys. The answer's type is the caller's reading of the script's header. */
  async run<T extends { outcome: number }>(
    name: string,
    base: string,
    args: ScriptArgs,
    bytes: Uint8Array[] = [],
  ): Promise<T> {
    return unpack((await this.#call(name, base, args, bytes)) as Uint8Array) as T
  }

  /** For scripts that answer raw bytes beside msgpack. */
  async runRaw(name: string, base: string, args: ScriptArgs): Promise<Buffer[]> {
    return (await this.#call(name, base, args, [])) as Buffer[]
  }

  #call(name: string, base: string, args: ScriptArgs, bytes: Uint8Array[]): Promise<unknown> {
    const commands = this.redis as unknown as Record<string, Command>
    const command = commands[`${commandOf(name)}Buffer`]
    if (!command) throw new Error(`no script ${name}`)
    return command.call(this.redis, base, pack(args), ...bytes)
  }
}

function commandOf(name: string): string {
  return `indraft_${name.replaceAll('-', '_')}`
}

/** Lua's empty table travels as an empty list, whatever it was meant to be. */
export function mapOf<T>(table: Record<string, T> | T[]): Record<string, T> {
  return Array.isArray(table) ? {} : table
}
