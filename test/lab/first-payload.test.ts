/** The guide for a new site, followed word by word by alice: every block of commands, in order, in one shell. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { addresses, type Centre, inside, startCentre } from './centre.ts'
import { type Outside, startOutside } from './product.ts'
import { checkout, whyNoLab } from './roots.ts'

const guide = readFileSync(join(checkout, 'docs/site/first-payload.md'), 'utf8')
const sbatchFile = readFileSync(join(checkout, 'deploy/slurm/pilot.sbatch'), 'utf8')
const blocks = [...guide.matchAll(/^```bash\n(.*?)^```$/gms)].map(([, text]) => text!)

/** The options of a batch script and of the srun in it, without what follows `run`. */
function slurmOptions(script: string): string[] {
  const sbatch = [...script.matchAll(/^#SBATCH (.*)$/gm)].flatMap(([, options]) => options!.split(' '))
  const srun = /exec srun ([^\n]*?)\s*\\\n/.exec(script)?.[1]?.replaceAll('"', '').split(' ') ?? []
  return [...sbatch, ...srun]
}

describe('guide - what it says of itself', () => {
  test('time - its steps add up to no more than the quarter of an hour that it promises', () => {
    const minutes = [...guide.matchAll(/^## \d\. .* \((\d+) minutes?\)$/gm)].map(([, count]) => Number(count))
    expect(minutes).toHaveLength(6)
    expect(minutes.reduce((sum, count) => sum + count)).toBeLessThanOrEqual(15)
  })

  test('script - its options are those of deploy/slurm/pilot.sbatch, and each is explained', () => {
    const options = slurmOptions(blocks.find((block) => block.includes('#SBATCH'))!)
    expect(options.length).toBeGreaterThan(7)
    expect(slurmOptions(sbatchFile)).toEqual(expect.arrayContaining(options))
    const explained = ['--exclusive', '--mem=0', '--no-requeue', '--signal=USR1@300', '--kill-on-bad-exit=0']
    const table = [...guide.matchAll(/^\| (`.*?) \|/gm)].map(([, words]) => words!).join(' ')
    for (const option of explained) {
      expect(options).toContain(option)
      expect(table).toContain(option)
    }
  })
})

describe.skipIf(whyNoLab() !== null)('guide', () => {
  let centre: Centre
  let outside: Outside
  beforeAll(async () => {
    centre = await startCentre({ nodes: 1 })
    outside = await startOutside(centre)
  })
  afterAll(async () => {
    await centre?.stop()
  })

  test('first payload - the commands of the guide, as they stand, in less than its quarter of an hour', {
    timeout: 400_000,
  }, async () => {
    const { joinToken } = JSON.parse(await outside.indraft('site', 'add', 'NEW-SITE', '--json')) as {
      joinToken: string
    }
    const added = JSON.parse(await outside.indraft('admin', 'token', 'add', 'alice', '--group', '/demo', '--json'))
    // The guide brings its own programs: those that other tests find on the path are not to help it.
    for (const host of ['edge', 'n1'] as const) {
      await centre.check(host, ['rm', '/usr/local/bin/indraft', '/usr/local/bin/indraft-pilot'])
    }
    // What the guide says that the people at the centre send.
    const copy = `cp ${inside.checkout}/dist/indraft.mjs ${inside.checkout}/dist/indraft-pilot.mjs .; cat >centre-ca.pem`
    await centre.check('edge', ['sh', '-c', copy], { user: 'alice', input: `${outside.ca}\n` })
    const mine: Record<string, string> = {
      CENTRE: outside.url,
      JOIN_TOKEN: joinToken,
      MY_TOKEN: added.token,
      AUTHORITY: '$HOME/centre-ca.pem',
      EDGE: addresses.edgeLan,
      IMAGE: inside.images.busybox,
    }
    const names = [...blocks[0]!.matchAll(/^(\w+)=/gm)].map(([, name]) => name!)
    expect(names).toEqual(Object.keys(mine))
    const settings = blocks[0]!.replace(/^(\w+)=.*$/gm, (_, name: string) => `${name}=${mine[name]}`)
    const [first, last] = [[settings, ...blocks.slice(1, -1)], blocks.at(-1)!]
    // And once more without an image, as the guide says that one can.
    const onHost = first
      .at(-1)!
      .replaceAll('hello/hello', 'hello-host/hello')
      .replace('name: hello', 'name: hello-host')
    const script = [...first, `IMAGE=host\n${onHost}`].map((block, i) => `echo "== ${i + 1}"\n${block}`).join('\n')
    // From a file: what reads standard input, as srun does, would eat the rest.
    await centre.write('edge', '/tmp/guide.sh', script)
    const startedMs = performance.now()
    const said = await centre.run('edge', ['bash', '-e', '-o', 'pipefail', '/tmp/guide.sh'], {
      user: 'alice',
      timeoutMs: 350_000,
    })
    const tookS = (performance.now() - startedMs) / 1000
    expect(said.code, `${said.stdout}\n${said.stderr}\n${centre.logs(30)}`).toBe(0)
    expect(said.stdout).toMatch(/^good {2}containers start +apptainer/m)
    expect(said.stdout).not.toContain('BAD')
    expect(said.stdout).toMatch(/^relay\.ready$/m)
    const words = said.stdout.match(/^hello from task 2 on n1$/gm)
    expect(words, said.stdout).toHaveLength(2)
    console.log(`guide: ${first.length} blocks in ${tookS.toFixed(0)} s, without the reading`)

    const ended = await centre.run('edge', ['bash', '-e', '-s'], { user: 'alice', input: last })
    expect(ended.code, ended.stderr).toBe(0)
    for (const { id } of await centre.squeue()) await centre.waitForJob(id)
    expect(await centre.check('n1', ['sh', '-c', 'cat /proc/[0-9]*/comm'])).not.toMatch(/indraft|appinit|squashfuse/)
    while ((await centre.check('edge', ['sh', '-c', 'cat /proc/[0-9]*/comm'])).includes('indraft-relay'))
      await sleep(200)
  })
})
