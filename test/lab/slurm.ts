/**
 * Slurm in the lab: its configuration, its daemons (munge everywhere, the controller on the edge node, slurmd on each
 * compute node), and the few questions and orders that tests have for it. Jobs are submitted by alice from the edge node.
 *
 * Partitions: `main` (default), and `low` and `high` over the same nodes, of which a job in `high` preempts and requeues
 * one in `low` after a grace of 30 s. What is requeued may start again after seconds, not after Slurm's usual two minutes.
 * No accounting: sacct needs slurmdbd, and that a database server. The ledger of ended jobs is the controller's own file.
 */
import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { addresses, type Centre, type RunOptions } from './centre.ts'
import { alice } from './roots.ts'

/** One line of squeue. */
export interface QueueEntry {
  id: string
  name: string
  state: string
  partition: string
  nodes: string
  reason: string
}

/** `scontrol show job`, by name: JobState, Restarts, NodeList, ExitCode, EndTime, Reason, ... */
export type JobFacts = Readonly<Record<string, string>>

const ended = ['COMPLETED', 'FAILED', 'CANCELLED', 'TIMEOUT', 'NODE_FAIL', 'OUT_OF_MEMORY', 'PREEMPTED', 'DEADLINE']

/** A job that has ended, as the controller wrote it down. A job that is requeued has a line for each of its runs. */
export interface EndedJob {
  id: string
  name: string
  user: string
  partition: string
  state: string
  nodes: string
}

const ledgerPath = '/var/log/slurm-jobs.txt'

/** What a compute node says it has; more than the machine, so that several pilots and jobs fit. */
export const nodeShape = { cpus: 8, memoryMiB: 16_000 } as const

function configuration(centre: Centre): string {
  const nodes = centre.nodes.map(
    (node, at) =>
      `NodeName=${node} NodeAddr=10.77.0.${11 + at} CPUs=${nodeShape.cpus} RealMemory=${nodeShape.memoryMiB} State=UNKNOWN`,
  )
  const names = centre.nodes.join(',')
  return `ClusterName=lab
SlurmctldHost=edge(${addresses.edgeLan})
SlurmUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
CredType=cred/munge
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc=${ledgerPath}
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
DefMemPerCPU=500
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=30
MpiDefault=none
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=200000,bf_interval=5
${nodes.join('\n')}
PartitionName=main Nodes=${names} Default=YES MaxTime=1:00:00 PriorityTier=5 PreemptMode=OFF State=UP
PartitionName=low Nodes=${names} MaxTime=1:00:00 PriorityTier=1 PreemptMode=REQUEUE GraceTime=30 State=UP
PartitionName=high Nodes=${names} MaxTime=1:00:00 PriorityTier=10 PreemptMode=OFF State=UP
`
}

/** Starts munge and Slurm and waits until every node is idle. */
export async function startSlurm(centre: Centre): Promise<void> {
  const hosts = ['edge', ...centre.nodes] as const
  const key = randomBytes(96).toString('base64')
  const text = configuration(centre)
  await Promise.all(
    hosts.map(async (host) => {
      await centre.write(host, '/etc/munge/munge.key', key, '400', 'munge')
      await centre.write(host, '/etc/slurm/slurm.conf', text)
      // No control groups in the lab: this machine may not delegate any.
      await centre.write(host, '/etc/slurm/cgroup.conf', 'CgroupPlugin=disabled\n')
      const names = centre.nodes.map((node, at) => `10.77.0.${11 + at} ${node}`).join('\n')
      await centre.write(host, '/etc/hosts', `127.0.0.1 localhost\n${addresses.edgeLan} edge\n${names}\n`)
      await centre.check(host, ['install', '-d', '-o', 'munge', '-g', 'munge', '-m', '755', '/run/munge'])
      await centre.check(host, ['mkdir', '-p', '/var/spool/slurmctld', '/var/spool/slurmd'])
      centre.spawn(host, 'munged', ['munged', '--foreground'], { user: 'munge' })
      await until(`munge on ${host}`, async () => (await centre.run(host, ['munge', '-n'])).code === 0)
    }),
  )
  centre.spawn('edge', 'slurmctld', ['slurmctld', '-D'])
  for (const node of centre.nodes) centre.spawn(node, 'slurmd', ['slurmd', '-D', '-N', node])
  await until('all nodes idle', async () => {
    const { stdout } = await centre.run('edge', ['sinfo', '-h', '-N', '-p', 'main', '-o', '%T'])
    const states = stdout.split('\n').filter(Boolean)
    return states.length === centre.nodes.length && states.every((state) => state === 'idle')
  })
}

export async function submit(
  centre: Centre,
  script: string,
  args: readonly string[],
  options: RunOptions,
): Promise<string> {
  const input = script.startsWith('#!') ? script : `#!/bin/bash\n${script}\n`
  const said = await centre.check('edge', ['sbatch', '--parsable', ...args], { user: alice.name, ...options, input })
  return said.trim().split(';')[0]!
}

export async function queue(centre: Centre): Promise<QueueEntry[]> {
  const text = await centre.check('edge', ['squeue', '-h', '-o', '%i|%j|%T|%P|%N|%r'])
  return text
    .split('\n')
    .filter(Boolean)
    .map((line) => {
      const [id = '', name = '', state = '', partition = '', nodes = '', reason = ''] = line.split('|')
      return { id, name, state, partition, nodes, reason }
    })
}

export async function jobFacts(centre: Centre, id: string): Promise<JobFacts> {
  const text = await centre.check('edge', ['scontrol', 'show', 'job', '-o', id])
  return Object.fromEntries([...text.matchAll(/(\S+?)=(\S*)/g)].map(([, name, value]) => [name!, value!]))
}

/** Every run of a job that has ended since the controller's start, also when squeue has forgotten it. */
export async function endedJobs(centre: Centre): Promise<EndedJob[]> {
  const text = await centre.check('edge', ['sh', '-c', `cat ${ledgerPath} 2>/dev/null; true`])
  return text
    .split('\n')
    .filter(Boolean)
    .map((line) => {
      const of = (name: string) => new RegExp(`\\b${name}=(\\S*)`).exec(line)?.[1] ?? ''
      const user = of('UserId').replace(/\(.*/, '')
      const [id, name, partition, state, nodes] = ['JobId', 'Name', 'Partition', 'JobState', 'NodeList'].map(of)
      return { id: id!, name: name!, user, partition: partition!, state: state!, nodes: nodes! }
    })
}

/** As scancel by the job's owner; more arguments come before the id, as `--signal=USR1`. */
export async function cancel(centre: Centre, id: string, args: readonly string[] = []): Promise<void> {
  await centre.check('edge', ['/usr/bin/scancel', ...args, id], { user: alice.name })
}

/** As the administrator: a running job is ended and waits to run again. */
export async function requeue(centre: Centre, id: string): Promise<void> {
  await centre.check('edge', ['/usr/bin/scontrol', 'requeue', id])
}

/** As the administrator: nothing new starts on the node, what runs may end. */
export async function drain(centre: Centre, node: string, reason: string): Promise<void> {
  await centre.check('edge', ['/usr/bin/scontrol', 'update', `NodeName=${node}`, 'State=DRAIN', `Reason=${reason}`])
}

/** Takes a node back that was drained or is down. */
export async function resume(centre: Centre, node: string): Promise<void> {
  await centre.check('edge', ['/usr/bin/scontrol', 'update', `NodeName=${node}`, 'State=RESUME'])
}

/** As sinfo has it: idle, allocated, mixed, draining, drained, down, ... */
export async function nodeState(centre: Centre, node: string): Promise<string> {
  return await centre.check('edge', ['/usr/bin/sinfo', '-h', '-N', '-n', node, '-p', 'main', '-o', '%T'])
}

/** Waits until a node is in one of these states. */
export async function waitForNode(centre: Centre, node: string, states: readonly string[]): Promise<string> {
  let state = ''
  const look = async () => {
    state = await nodeState(centre, node)
    return states.includes(state)
  }
  await until(`node ${node} in ${states.join(' or ')}`, look, 300_000, () => state)
  return state
}

export async function waitForJob(
  centre: Centre,
  id: string,
  states: readonly string[] = ended,
  timeoutMs = 400_000,
): Promise<JobFacts> {
  let facts: JobFacts = {}
  await until(
    `job ${id} in ${states.join(' or ')}`,
    async () => {
      facts = await jobFacts(centre, id)
      return states.includes(facts.JobState ?? '')
    },
    timeoutMs,
    () => JSON.stringify(facts),
  )
  return facts
}

/** Slurm has no way to be told of a change, so tests ask again. */
async function until(what: string, holds: () => Promise<boolean>, timeoutMs = 300_000, seen = () => ''): Promise<void> {
  const deadline = performance.now() + timeoutMs
  while (!(await holds())) {
    if (performance.now() > deadline) throw new Error(`lab: waited ${timeoutMs} ms for ${what} ${seen()}`)
    await sleep(150)
  }
}
