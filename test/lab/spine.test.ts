/**
 * The main job where it is meant to run: alice submits a Slurm job, its pilot on a node without a way out draws work
 * through the relay, payloads run in Apptainer, and central has their results.
 */
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { addresses, type Centre, inside, startCentre } from './centre.ts'
import { type Product, paths, startProduct } from './product.ts'
import { whyNoLab } from './roots.ts'

const meltInput = `${inside.checkout}/test/lab/melt.in`
const temperatures = [0.8, 1.44, 2]

const campaign = (name: string) => `indraft: 1
name: ${name}
group: /lab
defaults:
  image: ${inside.images.lammps}
steps:
  melt:
    sweep: {T: [${temperatures.join(', ')}], seed: 1..2}
    command: [lmp, -in, melt.in, -log, none, -var, T, $(T), -var, seed, $(seed), -var, cells, "6"]
    inputs:
      - {url: "file://${meltInput}", path: melt.in}
    resources: {cores: 1, memory: 200MB, walltime: 2min}
`

/** The pilot's words; it leaves soon after the last task. */
const pilotRun = `run --credential ${paths.pilotCredential} --idle-after 2s --idle-before 1min`
const onHost = `exec indraft-pilot ${pilotRun} --scratch /tmp/scratch`
const nested = `mkdir -p /tmp/scratch
exec apptainer --quiet exec --userns --contain --bind /dev/fuse,/images,/shared,${inside.checkout},/tmp/scratch:/scratch \\
  ${inside.images.pilot} node ${inside.checkout}/pilot/indraft-pilot.mjs ${pilotRun} --scratch /scratch`

describe.skipIf(whyNoLab() !== null)('spine', () => {
  let centre: Centre
  let product: Product

  beforeAll(async () => {
    centre = await startCentre({ nodes: 1 })
    product = await startProduct(centre, 0.1)
  })
  afterAll(async () => {
    await centre?.stop()
  })

  /** The lines that LAMMPS prints of the run itself. */
  const table = (text: string) => text.split('\n').filter((line) => /^\s+\d+\s+[\d.]+\s+-[\d.]+\s/.test(line))

  test.each([
    ['on the host', 'host', onHost],
    ['inside Apptainer', 'nested', nested],
  ])(
    'pilot %s - a sweep is done in containers, as one Slurm job, with the digits of a run by hand',
    async (_, name, script) => {
      await centre.write('outside', `/root/${name}.yaml`, campaign(name))
      await product.indraft('campaign', 'submit', `/root/${name}.yaml`)
      const job = await centre.sbatch(script, ['--exclusive', '--mem=4000', '-t', '10', '-o', `${name}.out`])
      expect((await centre.squeue()).map(({ id }) => id)).toEqual([job])
      // A pilot that has done its work says so and leaves well.
      const ended = await centre.waitForJob(job)
      const said = await centre.check('edge', ['cat', `${name}.out`], { user: 'alice' })
      expect(ended, said).toMatchObject({ JobState: 'COMPLETED', ExitCode: '0:0' })

      const tasks = await product.indraft('campaign', 'tasks', name)
      expect(tasks.match(/^\S+\s+done\s+1\s+LAB\s+n1/gm), tasks).toHaveLength(6)
      const byHand = [
        'lmp',
        '-in',
        meltInput,
        '-log',
        'none',
        '-var',
        'T',
        '1.44',
        '-var',
        'seed',
        '2',
        '-var',
        'cells',
        '6',
      ]
      const exec = ['apptainer', '--quiet', 'exec', '--containall', '--bind', inside.checkout, inside.images.lammps]
      const expected = table(await centre.check('n1', [...exec, ...byHand], { user: 'alice' }))
      expect(expected).toHaveLength(13)
      // Seeds are the axis that turns fastest: 0.8/1, 0.8/2, 1.44/1, 1.44/2.
      expect(table(await product.indraft('campaign', 'logs', `${name}/melt/3`))).toEqual(expected)
      // Nothing of the payloads is left on the node.
      expect(await centre.check('n1', ['sh', '-c', 'cat /proc/[0-9]*/comm'])).not.toMatch(/squashfuse|lmp|node/)
    },
  )

  test('site - only the relay is connected beyond it, and only the edge listens', async () => {
    const beyond = (await centre.sockets('edge')).filter(({ peer }) => peer.startsWith(addresses.outside))
    // Control all the time, files when there were some.
    const known = [`${addresses.outside}:4222`, `${addresses.outside}:8420`]
    expect(beyond.map(({ peer }) => peer)).toContain(known[0])
    expect(beyond.filter(({ peer }) => !known.includes(peer))).toEqual([])
    const open = (await centre.sockets('n1')).filter(({ state }) => state === 'LISTEN')
    expect(open.map((socket) => socket.process)).toEqual(['slurmd'])
    expect((await centre.sockets('n1')).filter(({ peer }) => peer.startsWith('10.78.'))).toEqual([])
  })
})
