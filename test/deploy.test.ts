/** What lies under deploy/ is what its reader takes, and names commands and options that exist. */
import { execFileSync, spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'

const root = join(import.meta.dirname, '..')
const read = (file: string) => readFileSync(join(root, 'deploy', file), 'utf8')
const UNITS = readdirSync(join(root, 'deploy/systemd'))
const TABS = ['cron/crontab', 'cron/crontab-relay', 'slurm/scrontab']
const ENTRY = { indraft: 'central/cli/indraft.mjs', 'indraft-pilot': 'pilot/indraft-pilot.mjs' }

const helps = new Map<string, string>()
/** What `indraft relay run --help` and the like say; each asked once. */
function helpOf(program: keyof typeof ENTRY, words: string[]): string {
  const key = [program, ...words].join(' ')
  if (!helps.has(key)) {
    const output = execFileSync(process.execPath, [join(root, ENTRY[program]), ...words, '--help'], { cwd: root })
    helps.set(key, output.toString())
  }
  return helps.get(key)!
}

/** Calls of our programs in a text, comments too; a line that ends with a backslash goes on. */
function callsIn(text: string) {
  const joined = text.replaceAll(/\\\n\s*/g, ' ').replaceAll(/\$\{INDRAFT_PILOT:-([a-z-]+)\}/g, '$1')
  const calls = joined.matchAll(/(?<![\w./-])(indraft-pilot|indraft) ((?:[a-z]+ )*[a-z]+)(?=[\s`]|$)([^\n`>|&;]*)/gm)
  return [...calls].map(([, program, words, rest]) => {
    const options = [...rest!.matchAll(/(?<=\s)(--[a-z-]+)/g)].map(([, option]) => option!)
    return { program: program as keyof typeof ENTRY, words: words!.split(' '), options }
  })
}

/** Of every call in a text, what is no command or no option of it. */
function unknownIn(text: string): string[] {
  return callsIn(text).flatMap(({ program, words, options }) => {
    const help = helpOf(program, words)
    if (!help.includes(`Usage: ${program} ${words.join(' ')} `)) return [`${program} ${words.join(' ')}`]
    return options.filter((option) => !new RegExp(`^ +${option}[ ,]`, 'm').test(help))
  })
}

describe('deploy', () => {
  it.each([...TABS, 'slurm/site.yaml', 'slurm/pilot.sbatch', ...UNITS.map((unit) => `systemd/${unit}`)])(
    '%s names commands and options that exist',
    (file) => {
      if (!file.endsWith('.timer')) expect(callsIn(read(file)).length).toBeGreaterThan(0)
      expect(unknownIn(read(file))).toEqual([])
    },
    60_000,
  )

  it('a command or an option that does not exist is seen', () => {
    expect(unknownIn('* * * * * indraft-pilot begin --site x')).toEqual(['indraft-pilot begin'])
    expect(unknownIn('indraft relay run \\\n  --state x --twice')).toEqual(['--twice'])
  })

  it.each(TABS)('%s: settings, comments, and one line with five fields of time', (file) => {
    const lines = read(file)
      .split('\n')
      .filter((line) => line !== '' && !line.startsWith('#') && !/^\w+=/.test(line))
    expect(lines).toHaveLength(1)
    expect(lines[0]).toMatch(/^([\d*/,-]+ ){5}(indraft-pilot start --site|indraft relay run --state) /)
  })

  it('a relay whose address nobody said does not start and says what is missing; it is shipped open to no network', () => {
    const unit = read('systemd/indraft-relay.service')
    const tab = read('cron/crontab-relay')
    const [, edge] = /^EDGE=(.*)$/m.exec(tab)!
    expect(unit).toContain(`\nEnvironment=EDGE=${edge}\n`)
    expect(unit).toMatch(/^ExecStart=.* --host \$\{EDGE\}$/m)
    const home = mkdtempSync(join(tmpdir(), 'indraft-crontab-'))
    try {
      mkdirSync(join(home, '.indraft'))
      writeFileSync(join(home, 'indraft'), `#!/bin/sh\nexec ${process.execPath} ${join(root, ENTRY.indraft)} "$@"\n`, {
        mode: 0o755,
      })
      const [, line] = /^(?:\S+ ){5}(indraft .*)$/m.exec(tab)!
      const env = { PATH: `${home}:/usr/bin:/bin`, HOME: home, EDGE: edge, STATE: join(home, 'state') }
      expect(spawnSync('sh', ['-c', line!], { env, timeout: 60_000 }).status).toBe(1)
      expect(readFileSync(join(home, '.indraft/relay.log'), 'utf8')).toContain(
        `indraft: relay could not start: host ${edge}: expected an address of this machine that nodes reach`,
      )
    } finally {
      rmSync(home, { recursive: true, force: true })
    }
  })

  it('slurm/pilot.sbatch is a script that a shell reads, with #SBATCH lines before its first command', () => {
    execFileSync('bash', ['-n', join(root, 'deploy/slurm/pilot.sbatch')])
    const lines = read('slurm/pilot.sbatch').split('\n')
    const first = lines.findIndex((line) => line !== '' && !line.startsWith('#'))
    expect(lines.findLastIndex((line) => line.startsWith('#SBATCH'))).toBeLessThan(first)
  })

  it.each(UNITS)('%s has the sections that systemd wants', (unit) => {
    const sections = new Map<string, Record<string, string>>()
    let section: Record<string, string> = {}
    for (const line of read(`systemd/${unit}`).split('\n')) {
      const head = /^\[(\w+)\]$/.exec(line)
      if (head) {
        section = {}
        sections.set(head[1]!, section)
      } else if (line !== '' && !line.startsWith('#')) {
        const [, key, value] = /^([A-Z]\w+)=(.+)$/.exec(line) ?? []
        expect([line, key !== undefined]).toEqual([line, true])
        section[key!] = value!
      }
    }
    expect(sections.get('Unit')?.Description).toMatch(/\w/)
    if (unit.endsWith('.timer')) expect(sections.get('Timer')?.OnUnitInactiveSec).toBe('1min')
    else expect(sections.get('Service')?.ExecStart).toMatch(/^\/usr\/bin\/env indraft/)
    // For a user's manager this was below ~/.config until systemd 254: not where the join was made.
    expect(sections.get('Service')?.ExecStart ?? '').not.toContain('%S')
    // What a timer starts is not started by itself.
    if (unit !== 'indraft-start.service') expect(sections.get('Install')?.WantedBy).toMatch(/\.target$/)
  })

  it.skipIf(spawnSync('systemd-analyze', ['--version']).status !== 0)(
    'systemd finds nothing wrong with its units',
    () => {
      const runtime = mkdtempSync(join(tmpdir(), 'indraft-systemd-'))
      try {
        const verify = (unit: string, words: string[]) => {
          const path = join(root, 'deploy/systemd', unit)
          const env = { PATH: process.env.PATH, XDG_RUNTIME_DIR: runtime, HOME: runtime }
          const { status, stderr } = spawnSync('systemd-analyze', ['verify', ...words, path], { env })
          return [unit, status, `${stderr}`.split('\n').filter((line) => line.includes(unit))]
        }
        for (const unit of UNITS) {
          expect(verify(unit, unit === 'indraft-central.service' ? [] : ['--user'])).toEqual([unit, 0, []])
        }
      } finally {
        rmSync(runtime, { recursive: true, force: true })
      }
    },
  )
})
