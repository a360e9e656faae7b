/**
 * The wide-area link of the lab: test/wan-link.ts as a program of its own on one of the lab's hosts. Told what to be by
 * one JSON object a line on standard input, each answered by the state and the counters as one line on standard output;
 * it ends when its standard input does.
 */
import process from 'node:process'
import { createInterface } from 'node:readline'
import { type Link, type LinkState, WanProxy } from '../wan-link.ts'
import type { Centre, Host } from './centre.ts'
import { inside } from './centre.ts'

/** A link running on a host of the lab. */
export interface RunningLink {
  port: number
  set(change: Partial<Link>): Promise<LinkState>
  state(): Promise<LinkState>
  stop(): Promise<unknown>
}

/**
 * Starts a link on a host: it listens at `host:port` there and leads to `target` as seen from there.
 * @param listen as `10.78.0.1:0`; port 0 for a free one
 * @param target as `127.0.0.1:4222`
 */
export async function startLink(centre: Centre, on: Host, listen: string, target: string): Promise<RunningLink> {
  const program = `${inside.checkout}/test/lab/wan-proxy.ts`
  const daemon = centre.spawn(on, `link-${target.replace(':', '-')}`, ['node', program, listen, target])
  const first = await daemon.waitFor(/^(\{.*\})\n/m)
  const tell = async (change: Partial<Link>): Promise<LinkState> => {
    const from = daemon.output.length
    daemon.stdin.write(`${JSON.stringify(change)}\n`)
    return JSON.parse((await daemon.waitFor(/^(\{.*\})\n/m, 60_000, from))[1]!) as LinkState
  }
  return {
    port: (JSON.parse(first[1]!) as LinkState).port,
    set: tell,
    state: () => tell({}),
    stop: () => daemon.stop(),
  }
}

if (import.meta.main) {
  const [listen = '127.0.0.1:0', target = ''] = process.argv.slice(2)
  const split = (address: string) => {
    const [host = '', port = ''] = address.split(':')
    return { host, port: Number(port) }
  }
  const at = split(listen)
  const proxy = new WanProxy(at.host, split(target))
  await proxy.listen(at.port)
  console.log(JSON.stringify(proxy.state()))
  for await (const line of createInterface({ input: process.stdin })) {
    console.log(JSON.stringify(await proxy.set(JSON.parse(line) as Partial<Link>)))
  }
  proxy.close()
}
