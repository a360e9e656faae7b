/**
 * How often Slurm is asked, and by whom: a folder of small scripts named as Slurm's commands, which write each call down
 * and then become the real one. Only who has the folder first on the path is counted, so a test's own questions are not; a
 * job that was submitted with it carries it along to its node.
 */
import type { Centre, Host } from './centre.ts'

export interface SlurmCall {
  host: Host
  /** Seconds since 1970, with fraction. */
  at: number
  user: string
  command: string
  /** One word after the other, divided by spaces. */
  words: string
}

export interface SlurmCalls {
  /** For the environment of whom is to be counted: `env: calls.env`. */
  env: { PATH: string }
  /** All so far, in order of time. */
  read(): Promise<SlurmCall[]>
}

const commands = ['sbatch', 'srun', 'salloc', 'squeue', 'scancel', 'sinfo', 'scontrol', 'sacct', 'sacctmgr', 'sstat']
const folder = '/opt/slurm-calls'
const log = '/var/log/slurm-calls'

// printf and one append: lines of calls at the same time do not mix. Line breaks in arguments become spaces.
const script = `#!/bin/bash
printf '%s %s %s %s\\n' "$EPOCHREALTIME" "$(id -un)" "\${0##*/}" "\${*//$'\\n'/ }" >>${log}
exec "/usr/bin/\${0##*/}" "$@"
`

export async function countSlurmCalls(centre: Centre): Promise<SlurmCalls> {
  const hosts: Host[] = ['edge', ...centre.nodes]
  await Promise.all(
    hosts.map(async (host) => {
      await centre.write(host, `${folder}/call`, script, '755')
      const links = commands.map((command) => `ln -f ${folder}/call ${folder}/${command}`).join('; ')
      await centre.check(host, ['sh', '-c', `chmod 755 ${folder}; ${links}; install -m 666 /dev/null ${log}`])
    }),
  )
  return {
    env: { PATH: `${folder}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin` },
    async read() {
      const calls = await Promise.all(hosts.map(async (host) => parse(host, await centre.check(host, ['cat', log]))))
      return calls.flat().sort((one, other) => one.at - other.at)
    },
  }
}

function parse(host: Host, text: string): SlurmCall[] {
  return text
    .split('\n')
    .filter(Boolean)
    .map((line) => {
      const [, at, user, command, words] = /^(\S+) (\S+) (\S+) (.*)$/.exec(line)!
      return { host, at: Number(at), user: user!, command: command!, words: words! }
    })
}
