/** Finds libfaketime (clocks.ts): installed, or in the private cache of fetched servers. */
import { existsSync } from 'node:fs'

export async function findFaketime(say: (line: string) => void): Promise<string | null> {
  const place = `/usr/lib/${process.arch === 'x64' ? 'x86_64' : 'aarch64'}-linux-gnu/faketime/libfaketime.so.1`
  if (existsSync(place)) return place
  say('no libfaketime here: clocks are not stepped')
  return null
}
