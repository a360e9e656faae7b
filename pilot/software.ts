/**
 * Software that a node offers beside images: CVMFS repositories and the EESSI stacks in one of them, found by looking,
 * matched by name (`cvmfs:REPOSITORY`, `eessi:VERSION`), and put before a payload that asks for it.
 *
 * A broken mount hangs whoever touches it, for ever and beyond SIGKILL. So only child processes touch /cvmfs, and nobody
 * waits for them longer than a bound.
 */
import { spawn } from 'node:child_process'
import type { TemplateBody } from '../shared/protocol/work.ts'
import { architecture } from './processor.ts'

export const EESSI_REPOSITORY = 'software.eessi.io'
const LOOK_MS = 15_000
const MOST_NAMES = 64

/**
 * Says which of the repositories can be read, one a line, and of EESSI's the versions that have a layer for this
 * processor. A repository that autofs has not mounted yet appears when it is touched, not before. All at once: one that
 * hangs hides no other.
 */
const TOUCH = `
touch_one() {
  case $1 in *[!A-Za-z0-9._-]*|''|.*) return ;; esac
  ls "$1/." 2>/dev/null | grep -q . || return
  printf 'cvmfs:%s\\n' "$1"
  [ "$1" = ${EESSI_REPOSITORY} ] || return
  for layer in "$1"/versions/*/compat/linux/"$arch"; do
    [ -d "$layer" ] || continue
    version=\${layer#*/versions/}
    printf 'eessi:%s\\n' "\${version%%/*}"
  done
}
cd "$1" 2>/dev/null || exit 0
arch=$2 others=$3
shift 3
[ "$others" = no ] || set -- "$@" *
for repo in "$@"; do touch_one "$repo" & done
wait
`

/**
 * @param root where repositories are mounted: /cvmfs, or a folder of the same form in tests
 * @param repositories to touch beside those that show themselves
 * @returns names, sorted; what was said within the bound where something hangs
 */
export async function findSoftware(
  root: string,
  repositories: readonly string[],
  lookMs: number = LOOK_MS,
): Promise<string[]> {
  const found = await touch(root, 'and others', [EESSI_REPOSITORY, ...repositories], lookMs)
  return [...found].sort().slice(0, MOST_NAMES)
}

/**
 * Repositories that an autofs may have unmounted since: touched again, and no others, before a container is to see them.
 * @returns those that cannot be read
 */
export async function touchSoftware(root: string, repositories: readonly string[]): Promise<string[]> {
  const found = await touch(root, 'no others', repositories, LOOK_MS)
  return repositories.filter((repository) => !found.has(`cvmfs:${repository}`))
}

async function touch(
  root: string,
  others: 'and others' | 'no others',
  repositories: readonly string[],
  limitMs: number,
) {
  const args = [root, architecture(), others === 'no others' ? 'no' : 'yes', ...repositories]
  const said = await look(TOUCH, args, limitMs)
  return new Set(said.split('\n').filter((line) => /^(cvmfs|eessi):\S+$/.test(line)))
}

/** Standard output of a shell script, as far as it came in time. Not waited for beyond that: it may not be killable. */
async function look(script: string, args: readonly string[], limitMs: number): Promise<string> {
  const child = spawn('/bin/sh', ['-c', script, 'look', ...args], {
    stdio: ['ignore', 'pipe', 'ignore'],
    detached: true,
  })
  let said = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    said += text
  })
  let timer: NodeJS.Timeout | undefined
  await new Promise<void>((resolve) => {
    timer = setTimeout(resolve, limitMs)
    child.once('close', () => resolve())
    child.once('error', () => resolve())
  })
  clearTimeout(timer)
  if (child.exitCode === null && child.pid !== undefined) {
    try {
      process.kill(-child.pid, 'SIGKILL')
    } catch {
      // Gone in this moment.
    }
    child.stdout.destroy()
    child.unref()
  }
  return said
}

export type Software = NonNullable<TemplateBody['software']>

/** Repositories that a payload reads. */
export function repositoriesOf(software: Software): string[] {
  return [...new Set([...software.cvmfs, ...(software.eessi ? [EESSI_REPOSITORY] : [])])]
}

/**
 * Sourced by the wrapper before it looks for the command; null where nothing is to be set up. EESSI's own start-up script
 * is for bash, so the wrapper is started once more by one: the image's, or the stack's own where an image has none.
 * @param root of the repositories, as the payload sees it
 */
export function softwareScript({ eessi }: Software, root: string): string | null {
  if (!eessi) return null
  const stack = `${root}/${EESSI_REPOSITORY}/versions/${eessi.version}`
  const fail = (why: string) => `{ printf 'software %s\\nend\\n' ${quoted(why)} >>"$_indraft_status"; exit 126; }`
  return `if [ "\${_INDRAFT_BASH-}" != yes ]; then
  for _indraft_bash in /bin/bash /usr/bin/bash ${quoted(`${stack}/compat/linux/`)}"$(uname -m)"/bin/bash; do
    [ -x "$_indraft_bash" ] && _INDRAFT_BASH=yes exec "$_indraft_bash" --noprofile --norc "$0" "$_indraft_status" "$@"
  done
  ${fail('there is no bash to set up EESSI with')}
fi
unset _INDRAFT_BASH
export EESSI_SILENT=1
${root === '/cvmfs' ? '' : `export EESSI_CVMFS_REPO_OVERRIDE=${quoted(`${root}/${EESSI_REPOSITORY}`)}\n`}[ -r ${quoted(`${stack}/init/bash`)} ] || ${fail(`EESSI ${eessi.version} is not there`)}
. ${quoted(`${stack}/init/bash`)} >&2
type module >/dev/null 2>&1 || ${fail(`EESSI ${eessi.version} could not be started`)}
${eessi.modules.map((name) => `module load ${quoted(name)} >&2 || ${fail(`module load ${name}`)}\n`).join('')}`
}

function quoted(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`
}
