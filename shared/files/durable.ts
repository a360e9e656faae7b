/** What makes a name survive a power cut: a file's fsync keeps its bytes, only its folder's keeps what it is called. */
import { open } from 'node:fs/promises'

/** Errors of a folder that we may write and not read, and of file systems that sync no folders: there is nothing to do. */
const CANNOT = ['EACCES', 'EINVAL', 'ENOTSUP', 'EOPNOTSUPP']

export async function syncFolder(path: string): Promise<void> {
  try {
    const folder = await open(path, 'r')
    try {
      await folder.sync()
    } finally {
      await folder.close()
    }
  } catch (error) {
    if (!CANNOT.includes((error as NodeJS.ErrnoException).code ?? '')) throw error
  }
}
