/** Trees of /proc, /sys and /dev as the drivers make them, made by hand after real ones; ids are invented. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { captured } from './captured/read.ts'
import { findGpuFiles } from './gpu-devices.ts'
import { type Gpus, narrow, parseNvidia, parseRocm } from './gpus.ts'

const nothingSaid = { cudaVisible: null, rocrVisible: null, slurmGpus: null }
const four = narrow(parseNvidia(captured('gpu/four-query.csv'), ''), nothingSaid)
const divided = narrow(parseNvidia(captured('gpu/mig-query.csv'), captured('gpu/mig-list.txt')), nothingSaid)
const amd = narrow(parseRocm(captured('gpu/rocm-unique.json')), nothingSaid)

let root: string
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'indraft-devices-'))
})
afterEach(() => rmSync(root, { recursive: true, force: true }))

function put(path: string, text = ''): void {
  mkdirSync(dirname(join(root, path)), { recursive: true })
  writeFileSync(join(root, path), text)
}

function nvidia(gpus: readonly { uuid: string; minor: number }[]): void {
  for (const [at, { uuid, minor }] of gpus.entries()) {
    put(`dev/nvidia${minor}`)
    const facts = `Model: \t\t NVIDIA H100\nIRQ:   \t\t 30\nGPU UUID: \t ${uuid}\nBus Type: \t PCIe\nDevice Minor: \t ${minor}\n`
    put(`proc/driver/nvidia/gpus/0000:${at + 1}9:00.0/information`, facts)
  }
  for (const name of ['nvidiactl', 'nvidia-uvm', 'nvidia-caps/nvidia-cap1']) put(`dev/${name}`)
}

const ids = ({ devices }: Gpus) => devices.map(({ id }) => id)

test('gpu files - NVIDIA: others’ are covered by number of the file, which is not the tool’s; control files never', async () => {
  nvidia([2, 0, 3, 1].map((minor, at) => ({ uuid: four.devices[at]!.id, minor })))
  const files = await findGpuFiles(four, root)
  const [a, b] = ids(four) as [string, string]
  expect(files.foreignTo([a])).toEqual({ covered: ['/dev/nvidia0', '/dev/nvidia1', '/dev/nvidia3'], isAlone: true })
  expect(files.foreignTo([b, a])).toEqual({ covered: ['/dev/nvidia1', '/dev/nvidia3'], isAlone: true })
  expect(files.foreignTo(ids(four))).toEqual({ covered: [], isAlone: true })
  expect(files.example).toBe('/dev/nvidia0')
})

test('gpu files - NVIDIA: GPUs of other jobs are covered as well', async () => {
  nvidia(four.devices.map(({ id }, minor) => ({ uuid: id, minor })))
  const ours = { ...four, devices: four.devices.slice(0, 1) }
  const files = await findGpuFiles(ours, root)
  expect(files.foreignTo(ids(ours)).covered).toEqual(['/dev/nvidia1', '/dev/nvidia2', '/dev/nvidia3'])
})

test('gpu files - an instance of a divided GPU has its GPU’s file, and is not alone with it', async () => {
  const uuid = 'GPU-838f60d9-651f-9166-ea42-f9da674a6947'
  nvidia([
    { uuid, minor: 0 },
    { uuid: 'GPU-other', minor: 1 },
  ])
  const files = await findGpuFiles(divided, root)
  expect(files.foreignTo(ids(divided).slice(2, 3))).toEqual({ covered: ['/dev/nvidia1'], isAlone: false })
})

test('gpu files - AMD: by unique id, with the card beside the render node', async () => {
  for (const [at, id] of ids(amd).entries()) {
    const minor = 128 + at
    put(`dev/dri/renderD${minor}`)
    put(`dev/dri/card${at + 1}`)
    const unique = BigInt(`0x${id.slice('GPU-'.length)}`)
    put(
      `sys/class/kfd/kfd/topology/nodes/${at + 2}/properties`,
      `simd_count 440\ndrm_render_minor ${minor}\nunique_id ${unique}\n`,
    )
    put(`sys/class/drm/renderD${minor}/device/drm/card${at + 1}/dev`)
    put(`sys/class/drm/renderD${minor}/device/drm/renderD${minor}/dev`)
  }
  put('sys/class/kfd/kfd/topology/nodes/0/properties', 'cpu_cores_count 64\ndrm_render_minor 0\nunique_id 0\n')
  put('dev/dri/by-path/pci')
  const files = await findGpuFiles(amd, root)
  const others = [2, 3, 4].map((card) => `/dev/dri/card${card}`)
  expect(files.foreignTo(ids(amd).slice(0, 1))).toEqual({
    covered: [...others, '/dev/dri/renderD129', '/dev/dri/renderD130', '/dev/dri/renderD131'],
    isAlone: true,
  })
})

test('gpu files - where it cannot be told which are whose nothing is covered, and it is said', async () => {
  for (const minor of [0, 1, 2, 3]) put(`dev/nvidia${minor}`)
  const files = await findGpuFiles(four, root)
  expect(files.foreignTo(ids(four).slice(0, 1))).toEqual({ covered: [], isAlone: false })
  expect(files.example).toBeNull()
  for (const node of [1, 2]) {
    const facts = `drm_render_minor ${127 + node}\nunique_id ${BigInt('0x7ef570db1b346018')}\n`
    put(`sys/class/kfd/kfd/topology/nodes/${node}/properties`, facts)
    put(`dev/dri/renderD${127 + node}`)
  }
  const parts = await findGpuFiles(amd, root)
  expect(parts.foreignTo(['GPU-7ef570db1b346018'])).toEqual({ covered: [], isAlone: false })
  const numbered = narrow(parseRocm(captured('gpu/rocm-mi250.json')), nothingSaid)
  expect((await findGpuFiles(numbered, root)).foreignTo(['0'])).toEqual({ covered: [], isAlone: false })
})
