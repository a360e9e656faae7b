/** What makes a name survive a power cut: a file's fsync keeps its bytes, only its folder's keeps what it is called. */
import { open } from 'node:fs/promises'

export async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, 'r')
  try {
    await folder.sync()
  } finally {
    await folder.close()
  }
}
