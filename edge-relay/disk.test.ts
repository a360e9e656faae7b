/** Room that files claim before they are written, on a disk whose size the test says. */
import { beforeEach, describe, expect, it } from 'vitest'
import { silentLog } from '../shared/log.ts'
import { Disk, type DiskOptions } from './disk.ts'

const RESERVE = 100

let free: number
let spare: number
let isJournalFull: boolean
let dropped: number
let options: DiskOptions
let disk: Disk

beforeEach(async () => {
  free = 1000
  spare = 0
  dropped = 0
  isJournalFull = false
  options = {
    folder: '/',
    reserveBytes: RESERVE,
    isJournalFull: () => isJournalFull,
    makeRoom: async (bytes) => {
      const gone = Math.min(bytes, spare)
      dropped += gone
      spare -= gone
      free += gone
    },
    spareBytes: () => spare,
    freeBytes: async () => free,
    log: silentLog,
  }
  disk = new Disk(options)
  await disk.look()
})

const refused = { code: 'store.full' }

describe('disk - room for a file', () => {
  it('disk - one larger than what is free without the reserve is refused before it is written', async () => {
    await expect(disk.claim(901)).rejects.toMatchObject(refused)
    await disk.claim(900)
  })

  it('disk - what others claimed and have not written yet is taken', async () => {
    const one = await disk.claim(600)
    await expect(disk.claim(400)).rejects.toMatchObject(refused)
    // Written: it is the file system's to say now, and not counted twice.
    one.take(600)
    free -= 600
    await disk.claim(300)
    await expect(disk.claim(1)).rejects.toMatchObject(refused)
  })

  it('disk - what a broken transfer claimed is free again, once', async () => {
    const one = await disk.claim(600)
    one.take(200)
    free -= 200
    one.end()
    one.end()
    await disk.claim(700)
    await expect(disk.claim(1)).rejects.toMatchObject(refused)
  })

  it('disk - cached files go for one that then fits, and stay where it would not', async () => {
    spare = 500
    await expect(disk.claim(1401)).rejects.toMatchObject(refused)
    expect(dropped).toBe(0)
    await disk.claim(1000)
    expect(dropped).toBe(100)
  })

  it('disk - one of unknown size is stopped at the reserve, also between two looks', async () => {
    const one = await disk.claim(null)
    one.take(900)
    expect(() => one.take(1)).toThrow(expect.objectContaining(refused))
    await disk.look()
    one.take(1)
  })

  it('disk - before the first look one of unknown size goes by what is free then', async () => {
    const fresh = new Disk(options)
    const one = await fresh.claim(null)
    one.take(900)
    expect(() => one.take(1)).toThrow(expect.objectContaining(refused))
  })

  it('disk - one under way is stopped when the disk becomes full beside it', async () => {
    const one = await disk.claim(500)
    one.take(100)
    free = 50
    await disk.look()
    expect(() => one.take(1)).toThrow(expect.objectContaining(refused))
    await expect(disk.claim(0)).rejects.toMatchObject(refused)
    free = 1000
    await disk.look()
    isJournalFull = true
    expect(() => one.take(1)).toThrow(expect.objectContaining(refused))
  })
})
