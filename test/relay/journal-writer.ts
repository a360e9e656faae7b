/** Writes results into a journal for ever and says each one that is committed on standard output; killed by its test. */
import { writeSync } from 'node:fs'
import { Journal } from '../../edge-relay/journal.ts'
import { silentLog } from '../../shared/log.ts'
import { sampleResult } from '../sample-messages.ts'

const journal = Journal.open(process.argv[2]!, silentLog, (error) => {
  throw error
})
// Fewer than a commit takes at once, so that each waits for a commit and not for the others.
const WRITERS = 10

async function writeForEver(writer: number): Promise<void> {
  for (let count = 0; ; count++) {
    const name = `w${writer}/${count}`
    journal.putResult(name, { ...sampleResult, index: count })
    await journal.committed()
    writeSync(1, `${name}\n`)
  }
}
for (let writer = 0; writer < WRITERS; writer++) void writeForEver(writer)
