/**
 * The two shell scripts of the pilot, kept as text because the pilot is shipped as one file. POSIX sh only: they run
 * in any image.
 *
 * WRAPPER runs a payload's argument vector without evaluating any of it and says in a status file what happened, so
 * that a payload's 255 is not taken for the container runtime's, nor a missing command for an exit status of 127.
 * GUARD ends the payloads of a pilot that was killed: it waits for the end of its standard input.
 */

/**
 * The wrapper's own pid is kept in the limit for the size of files, from half a petabyte on: whatever descends from it has
 * the same, whichever session, parent, environment, name and folder it took, and only root could raise it again.
 */
export const MARK_BLOCKS = 2 ** 40

/**
 * Arguments: the status file, then the payload's argument vector. The status file gets, one line each: `started`;
 * then `none` (no such command), `software ...` (what the file `software` beside it was to set up failed, and why) or `exit N` with the shell's `times`; then `end`. Without `end` nothing counts.
 * Its variables begin with `_indraft` because the payload's environment may hold any other name.
 */
export const WRAPPER = `#!/bin/sh
_indraft_status=$1
shift
printf 'started\\n' >>"$_indraft_status" || exit 126
_indraft_software=\${0%/*}/software
[ -r "$_indraft_software" ] && . "$_indraft_software"
ulimit -c 0 2>/dev/null
ulimit -f $((${MARK_BLOCKS} + $$)) 2>/dev/null
{ echo 500 >/proc/self/oom_score_adj; } 2>/dev/null
# A trap, not "ignore": what is ignored would be ignored by the payload too.
trap : HUP INT TERM USR1 USR2
_indraft_found=
case $1 in
*/*) _indraft_found=$1 ;;
*)
  _indraft_ifs=$IFS
  IFS=:
  set -f
  for _indraft_folder in $PATH; do
    if [ -f "\${_indraft_folder:-.}/$1" ] && [ -x "\${_indraft_folder:-.}/$1" ]; then
      _indraft_found=\${_indraft_folder:-.}/$1
      break
    fi
  done
  set +f
  IFS=$_indraft_ifs
  ;;
esac
if [ ! -f "$_indraft_found" ] || [ ! -x "$_indraft_found" ]; then
  printf 'none\\nend\\n' >>"$_indraft_status"
  exit 127
fi
shift
# With a slash in its name a command is never taken for a builtin such as eval.
"$_indraft_found" "$@"
{
  printf 'exit %s\\n' "$?"
  times
  printf 'end\\n'
} >>"$_indraft_status"
`

/**
 * Argument: the pilot's marker (NAME=value, as it stands in every payload's environment). A line on standard input
 * means that the pilot ended well and nothing is left; its end means that the pilot is gone. A payload's own process
 * group goes with its leader.
 */
export const GUARD = `#!/bin/sh
trap '' HUP INT TERM USR1 USR2
if read -r _line; then exit 0; fi
for _file in $(grep -lzsxF -e "$1" /proc/[0-9]*/environ); do
  _pid=\${_file#/proc/}
  _pid=\${_pid%/environ}
  [ "$_pid" = "$$" ] && continue
  kill -KILL -- "-$_pid" 2>/dev/null
  kill -KILL "$_pid" 2>/dev/null
done
`

export interface WrapperStatus {
  /** The wrapper ran: from here on the end is the payload's own, not the runtime's. */
  started: boolean
  noCommand: boolean
  /** Why the software asked for could not be set up; see software.ts. */
  softwareFailed: string | null
  /** As the shell gives it: 128 + n where a signal ended the payload. Null where the wrapper was ended itself. */
  exitCode: number | null
  /** User and system time of everything that the payload waited for. */
  cpuMs: number
}

/**
 * The payload may have written there too, or begun the file anew: the last word is the wrapper's, unless the payload ended
 * that first. IMPORTANT: so nothing leaves here that no message can carry (session.test.ts, "words of its own").
 */
export function parseStatus(text: string): WrapperStatus {
  const lines = text.split('\n')
  const whole = lines.includes('end')
  const exit = lines.findLast((line) => /^exit \d{1,3}$/.test(line) && Number(line.slice('exit '.length)) <= 255)
  return {
    started: whole || lines.includes('started'),
    noCommand: whole && lines.includes('none'),
    softwareFailed: exit === undefined ? (lines.find((line) => line.startsWith('software '))?.slice(9) ?? null) : null,
    exitCode: whole && exit !== undefined ? Number(exit.slice('exit '.length)) : null,
    cpuMs: whole ? cpuTimes(lines) : 0,
  }
}

/** The second line of `times` is about children: `0m1.23s 0m0.04s`. What is no number there is no time. */
function cpuTimes(lines: string[]): number {
  const times = lines.filter((line) => /^\d+m[\d.,]+s \d+m[\d.,]+s$/.test(line)).at(-1)
  let sumMs = 0
  for (const [, minutes, seconds] of times?.matchAll(/(\d+)m([\d.,]+)s/g) ?? []) {
    sumMs += Number(minutes) * 60_000 + Number(seconds!.replace(',', '.')) * 1000
  }
  return Number.isFinite(sumMs) ? Math.round(sumMs) : 0
}
