/**
 * For tests only: runs TypeScript as somebody whom the modes of files bind. Root is not, unless it gives away the right to
 * pass over them; it stays who it is, so that it can still read the program.
 */
import { execa } from 'execa'

const WITHOUT = ['setpriv', '--bounding-set', '-dac_override,-dac_read_search']

/** @param script imports by path from pilot/, and prints JSON @returns what that says */
export async function runBound(script: string): Promise<unknown> {
  const node = [process.execPath, '--input-type=module-typescript', '--eval', script]
  const [file, ...args] = process.getuid!() === 0 ? [...WITHOUT, ...node] : node
  const { stdout } = await execa(file!, args, { cwd: import.meta.dirname })
  return JSON.parse(stdout)
}
