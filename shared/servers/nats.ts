/**
 * Starts a nats-server of our own. The caller gives the part of the configuration that is about accounts, TLS and
 * limits; address and log are set here.
 */
import { connect } from 'node:net'
import { join, resolve } from 'node:path'
import { locateServer } from './locate.ts'
import { writePrivately } from './private-file.ts'
import { type RunningServer, startServer } from './process.ts'

export interface NatsServerOptions {
  /** Holds the configuration (0600), the log and the record of the process. */
  dir: string
  /** In nats-server's configuration language; must not set listen, host, port or log_file. */
  configText: string
  path?: string | undefined
  env?: Readonly<Record<string, string>> | undefined
  port?: number | undefined
  /** Default 127.0.0.1. */
  host?: string | undefined
  /** Whether configText has a tls block: the URL then begins with tls://. */
  tls?: boolean | undefined
  say?: ((line: string) => void) | undefined
}

export interface RunningNats extends RunningServer {
  /** `nats://` or `tls://`, host and port; a host that means every address is given as 127.0.0.1. */
  url: string
  /** Takes over a new configText without a restart, as far as nats-server can. */
  reload(configText: string): void
}

/** Resolves when it accepts connections. @throws IndraftError server.missing | server.failed */
export async function startNats(options: NatsServerOptions): Promise<RunningNats> {
  const { say, host = '127.0.0.1' } = options
  const dir = resolve(options.dir)
  const place = options.path ? { path: options.path, env: options.env } : await locateServer('nats-server', { say })
  const configPath = join(dir, 'nats.conf')
  const reachable = host === '0.0.0.0' || host === '::' ? '127.0.0.1' : host
  const writeConfig = (port: number, text: string) =>
    writePrivately(configPath, `listen: ${JSON.stringify(`${host}:${port}`)}\n${text}\n`)
  const server = await startServer({
    name: 'nats',
    dir,
    path: place.path,
    env: place.env,
    host,
    port: options.port,
    say,
    prepare: (port) => {
      writeConfig(port, options.configText)
      return ['-c', configPath]
    },
    probe: (port) => probe(port, reachable),
  })
  return {
    ...server,
    url: `${options.tls ? 'tls' : 'nats'}://${reachable}:${server.port}`,
    reload(configText) {
      writeConfig(server.port, configText)
      server.signal('SIGHUP')
    },
  }
}

/** The server speaks first: `INFO {...}`, in clear also where TLS follows. */
function probe(port: number, host: string): Promise<'ready' | 'waiting'> {
  return new Promise((done) => {
    const socket = connect(port, host)
    const finish = (state: 'ready' | 'waiting') => {
      socket.destroy()
      done(state)
    }
    socket.setTimeout(2_000, () => finish('waiting'))
    socket.on('error', () => finish('waiting'))
    socket.on('close', () => finish('waiting'))
    socket.once('data', (data) => finish(data.toString('latin1').startsWith('INFO ') ? 'ready' : 'waiting'))
  })
}
