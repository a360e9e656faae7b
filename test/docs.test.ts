/** The pages say what is: links lead somewhere, LIFECYCLE names what exists, generated pages are what the code says. */
import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { describe, expect, it } from 'vitest'
import {
  attemptTable,
  bundleTable,
  desiredTable,
  leaseTable,
  pilotTable,
  relayTable,
  taskTable,
} from '../shared/lifecycle.ts'

const root = join(import.meta.dirname, '..')
const read = (path: string) => readFileSync(join(root, path), 'utf8')
const pages = execFileSync('git', ['ls-files', '--cached', '--others', '--exclude-standard', '*.md'], { cwd: root })
  .toString()
  .split('\n')
  .filter((path) => path !== '' && existsSync(join(root, path)))

/** The heading anchors of a page, as they are made on GitHub. */
function anchorsOf(text: string): Set<string> {
  const headings = [...text.matchAll(/^#+ (.+)$/gm)].map(([, title]) => title!)
  return new Set(
    headings.map((title) =>
      title
        .toLowerCase()
        .replaceAll(/[^\p{L}\p{N} _-]/gu, '')
        .replaceAll(' ', '-'),
    ),
  )
}
const withoutCode = (text: string) => text.replaceAll(/```[\s\S]*?```/g, '')

describe('docs - links', () => {
  it.each(pages)('%s leads only to what exists', (page) => {
    const dead: string[] = []
    for (const [, target] of withoutCode(read(page)).matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^[a-z]+:/.test(target!)) continue
      const [path, anchor] = target!.split('#')
      const file = path === '' ? join(root, page) : resolve(root, dirname(page), path!)
      if (!existsSync(file)) dead.push(target!)
      else if (anchor !== undefined && !anchorsOf(readFileSync(file, 'utf8')).has(anchor)) dead.push(target!)
    }
    expect(dead).toEqual([])
  })

  it('every page can be reached from the README', () => {
    const reached = new Set(['README.md'])
    for (const page of reached) {
      for (const [, target] of read(page).matchAll(/\]\(([^)#\s]+)/g)) {
        if (/^[a-z]+:/.test(target!)) continue
        const found = resolve(root, dirname(page), target!).slice(root.length + 1)
        if (pages.includes(found)) reached.add(found)
        else for (const one of pages) if (dirname(one) === found) reached.add(one)
      }
    }
    expect(pages.filter((page) => !reached.has(page) && !page.startsWith('deploy/'))).toEqual([])
  })

  it('no page names a path of one machine', () => {
    const wrong = pages.filter((page) => /(^|[\s`("'])\/(home|root|work|Users)\/\w/m.test(read(page)))
    expect(wrong).toEqual([])
  })
})

describe('docs - files that are named exist', () => {
  it.each(pages)('%s', (page) => {
    const named = [...read(page).matchAll(/`((?:central|edge-relay|pilot|shared|test|deploy|docs)\/[\w./-]+)`/g)]
    const missing = named.map(([, path]) => path!).filter((path) => !existsSync(join(root, path.replace(/\/$/, ''))))
    expect(missing).toEqual([])
  })
})

describe('docs - LIFECYCLE', () => {
  const text = read('docs/LIFECYCLE.md')
  const rows = text
    .split('\n')
    .filter((line) => line.startsWith('| ') && !line.startsWith('| step'))
    .map((line) =>
      line
        .split('|')
        .slice(1, -1)
        .map((cell) => cell.trim()),
    )

  it('has a row for everything, six cells each', () => {
    expect(rows.length).toBeGreaterThan(30)
    for (const row of rows) expect([row[0], row.length]).toEqual([row[0], 6])
  })

  it.each(rows.map((row) => [row[0]!, row[3]!, row[4]!]))('%s: %s is in %s', (_step, name, file) => {
    const path = /^`(.+)`$/.exec(file)?.[1] ?? ''
    const word = /^`(.+)`$/.exec(name)?.[1] ?? ''
    expect(existsSync(join(root, path))).toBe(true)
    const declared = new RegExp(`(function |^ {2}(async )?)${word.replace('#', '#')}\\b ?[<(]`, 'm')
    expect(read(path)).toMatch(declared)
  })

  it('names every event of every table, and no other', () => {
    const tables = [taskTable, attemptTable, leaseTable, bundleTable, pilotTable, relayTable, desiredTable]
    const events = new Set(tables.flatMap((table) => Object.values(table).flatMap((arrows) => Object.keys(arrows))))
    const missing = [...events].filter((event) => !text.includes(`\`${event}\``))
    expect(missing).toEqual([])
    const kinds = /`((?:task|attempt|lease|bundle|pilot|relay|campaign)\.[a-zA-Z]+)`/g
    const states = rows.flatMap((row) => [...row[1]!.matchAll(kinds)].map(([, event]) => event!))
    expect(states.filter((event) => !events.has(event) && event !== 'campaign.created')).toEqual([])
  })
})

describe('docs - dependencies', () => {
  it('the page lists exactly what package.json does', () => {
    const { dependencies, devDependencies, optionalDependencies } = JSON.parse(read('package.json'))
    const used = Object.keys({ ...dependencies, ...devDependencies, ...optionalDependencies })
    const listed = [...read('docs/decisions/dependencies.md').matchAll(/^\| `([^`]+)` \|/gm)].map(([, name]) => name!)
    expect(listed.sort()).toEqual(used.sort())
  })
})

describe('docs - commands', () => {
  it('npm scripts that pages name exist', () => {
    const { scripts } = JSON.parse(read('package.json'))
    const named = pages.flatMap((page) =>
      [...read(page).matchAll(/(?:^|`|&& )npm (?:run )?(\w[\w:-]*)/gm)].map(([, name]) => name!),
    )
    const known = new Set([...Object.keys(scripts), 'ci', 'i', 'install'])
    expect([...new Set(named)].filter((name) => !known.has(name))).toEqual([])
  })

  it('commands that pages name exist', () => {
    const help = new Map<string, boolean>()
    const missing: string[] = []
    for (const page of pages) {
      for (const [, program, words] of read(page).matchAll(
        /^(?:exec |npx )?(indraft|indraft-pilot)((?: [a-z][a-z-]*)+)/gm,
      )) {
        const command = `${program}${words}`
        if (!help.has(command)) help.set(command, isCommand(program!, words!.trim().split(' ')))
        if (!help.get(command)) missing.push(`${page}: ${command}`)
      }
    }
    expect(missing).toEqual([])
    // Some dozens of programs start, one after the other.
  }, 600_000)

  it('the reference pages are what the code says', () => {
    const output = execFileSync(process.execPath, ['docs/generate.ts', '--check'], { cwd: root })
    expect(output.toString()).toContain('up to date')
  })
})

const helps = new Map<string, string>()
function helpOf(entry: string, path: string[]): string {
  const key = [entry, ...path].join(' ')
  if (!helps.has(key)) {
    helps.set(key, execFileSync(process.execPath, [join(root, entry), ...path, '--help'], { cwd: root }).toString())
  }
  return helps.get(key)!
}

/** Whether these words are a command, with arguments after it perhaps: a group of commands takes no arguments. */
function isCommand(program: string, words: string[]): boolean {
  const entry = program === 'indraft' ? 'central/cli/indraft.mjs' : 'pilot/indraft-pilot.mjs'
  for (let length = words.length; length > 0; length--) {
    const path = words.slice(0, length)
    const help = helpOf(entry, path)
    if (!help.includes(`Usage: ${program} ${path.join(' ')} `)) continue
    return length === words.length || !/^Commands:$/m.test(help)
  }
  return false
}
