/** What lies under deploy/ for those who start pilots is what its reader takes, and names commands that exist. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Command } from 'commander'
import { describe, expect, it } from 'vitest'
import { addStartCommands } from './command.ts'

const read = (file: string) => readFileSync(join(import.meta.dirname, '../../deploy', file), 'utf8')
const program = new Command()
addStartCommands(
  program,
  () => {},
  async () => {},
)

/** Of every call of indraft-pilot in a text, what is no command or no option of it. */
function unknownWords(text: string): string[] {
  return [...text.matchAll(/indraft-pilot (\w+)([^\n>]*)/g)].flatMap(([, name, rest]) => {
    // Its options are the settings table, which site-file.test.ts holds.
    if (name === 'run') return []
    const command = program.commands.find((one) => one.name() === name)
    if (!command) return [name!]
    const options = [...rest!.matchAll(/(--[a-z-]+)/g)].map(([, option]) => option!)
    return options.filter((option) => !command.options.some((one) => one.long === option))
  })
}

describe('deploy', () => {
  it.each(['cron/crontab', 'slurm/scrontab', 'systemd/indraft-start.service', 'slurm/site.yaml'])(
    '%s names commands and options that exist',
    (file) => {
      expect(read(file)).toMatch(/indraft-pilot start/)
      expect(unknownWords(read(file))).toEqual([])
    },
  )

  it.each(['cron/crontab', 'slurm/scrontab'])(
    '%s: settings, comments, and one line with five fields of time',
    (file) => {
      const lines = read(file)
        .split('\n')
        .filter((line) => line !== '' && !line.startsWith('#') && !/^\w+=/.test(line))
      expect(lines).toHaveLength(1)
      expect(lines[0]).toMatch(/^([\d*/,-]+ ){5}indraft-pilot start --site /)
    },
  )

  it.each([
    ['systemd/indraft-start.service', { Unit: ['Description'], Service: ['Type', 'ExecStart'] }],
    ['systemd/indraft-start.timer', { Unit: ['Description'], Timer: ['OnUnitInactiveSec'], Install: ['WantedBy'] }],
  ])('%s has the sections that systemd wants', (file, expected) => {
    const sections: Record<string, string[]> = {}
    let section = ''
    for (const line of read(file)
      .split('\n')
      .filter((one) => one !== '' && !one.startsWith('#'))) {
      const head = /^\[(\w+)\]$/.exec(line)
      if (head) section = head[1]!
      else sections[section] = [...(sections[section] ?? []), /^(\w+)=./.exec(line)?.[1] ?? line]
    }
    expect(Object.keys(sections)).toEqual(Object.keys(expected))
    for (const [name, keys] of Object.entries(expected)) expect(sections[name]).toEqual(expect.arrayContaining(keys))
  })
})
