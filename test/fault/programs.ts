/**
 * The product as a run of the suite starts it: bundled once into the run's folder, so that what is edited meanwhile
 * changes nothing and processes start quickly. Central's scripts lie beside its bundle, where it looks for them.
 */
import { execFileSync } from 'node:child_process'
import { cpSync, mkdirSync, symlinkSync } from 'node:fs'
import { join, resolve } from 'node:path'

export interface Programs {
  /** Paths of the bundles, to be run by this Node. */
  indraft: string
  pilot: string
}

/** @param checkout the tree to build: this one, or a copy with something changed */
export function buildPrograms(folder: string, checkout = resolve(import.meta.dirname, '../..')): Programs {
  mkdirSync(folder, { recursive: true })
  execFileSync(process.execPath, [join(checkout, 'pilot/build.mjs'), `--into=${folder}`], { stdio: 'pipe' })
  cpSync(join(checkout, 'central/leases/scripts'), join(folder, 'scripts'), { recursive: true })
  symlinkSync(join(checkout, 'node_modules'), join(folder, 'node_modules'))
  return { indraft: join(folder, 'indraft.mjs'), pilot: join(folder, 'indraft-pilot.mjs') }
}
