/** What the demo kills in the middle of its work. */
import type { Client } from '../../api/client.ts'
import type { Stack } from '../up/stack.ts'

export const VICTIMS = ['pilot', 'relay', 'central', 'redis', 'nats', 'none'] as const
export type Victim = (typeof VICTIMS)[number]

export interface Accident {
  /** Name of the service that was killed. */
  service: string
  line: string
}

/** Kills one part with SIGKILL; `up` starts it again. undefined when no pilot is at work just now: try again. */
export async function causeAccident(
  victim: Exclude<Victim, 'none'>,
  stack: Stack,
  client: Client,
): Promise<Accident | undefined> {
  if (victim !== 'pilot') {
    const { name, part } = stack.service(victim)
    part?.kill()
    return {
      service: name,
      line: `killed ${name} (process ${part?.pid}, SIGKILL): it is started again, the others go on`,
    }
  }
  const { pilots } = await client.call('listPilots', {})
  const busiest = pilots
    .filter(({ state }) => state === 'active')
    .sort((a, b) => b.running - a.running || b.node.localeCompare(a.node))[0]
  const service = stack.services.find(({ name }) => name === busiest?.node)
  if (!busiest || busiest.running === 0 || !service) return undefined
  const { part } = service
  part?.kill()
  const tasks = busiest.running === 1 ? '1 task' : `${busiest.running} tasks`
  return {
    service: service.name,
    line: `killed pilot ${service.name} with ${tasks} running (process ${part?.pid}, SIGKILL)`,
  }
}
