import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { execa } from 'execa'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { enableFailpoints, failpoint } from './failpoint.ts'

const MODULE = new URL('failpoint.ts', import.meta.url).href
let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-failpoint-'))
})
afterEach(() => {
  enableFailpoints(null)
  rmSync(folder, { recursive: true, force: true })
})

describe('failpoint', () => {
  it('inert unless enabled - an armed moment passes', () => {
    writeFileSync(join(folder, 'grant.persisted'), 'throw ENOSPC')
    expect(() => failpoint('grant.persisted')).not.toThrow()
    expect(readdirSync(folder)).toEqual(['grant.persisted'])
  })

  it('throw - once, with its code, and only the moment that is armed', () => {
    enableFailpoints(folder)
    writeFileSync(join(folder, 'grant.persisted'), 'throw ENOSPC')
    failpoint('results.persisted')
    expect(() => failpoint('grant.persisted')).toThrow(expect.objectContaining({ code: 'ENOSPC' }))
    expect(() => failpoint('grant.persisted')).not.toThrow()
    expect(readdirSync(folder)).toEqual([`grant.persisted.hit.${process.pid}`])
  })

  it('kill - the process dies there', async () => {
    writeFileSync(join(folder, 'grant.persisted'), 'kill')
    const program = `import { enableFailpoints, failpoint } from '${MODULE}'
      enableFailpoints(process.argv[1]); console.log('before'); failpoint('grant.persisted'); console.log('after')`
    const ended = await execa(process.execPath, ['--input-type=module', '-e', program, folder], { reject: false })
    expect(ended).toMatchObject({ signal: 'SIGKILL', stdout: 'before' })
  })
})
