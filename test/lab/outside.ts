/**
 * The centre of Indraft on the lab's host `outside`: redis, nats and central on loopback, known to the world under the
 * address and ports at which a test's links lead to them. A program: arguments are the state folder, the public
 * host, and the ports of API and NATS there. Prints `outside.ready` with the ports on loopback, and ends with SIGTERM.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import process from 'node:process'
import { loadCentralConfig } from '../../central/config.ts'
import { startCentral } from '../../central/main.ts'
import { prepareNatsAccount } from '../../central/sites/nats-account.ts'
import { makeLog } from '../../shared/log.ts'
import { startNats } from '../../shared/servers/nats.ts'
import { startRedis } from '../../shared/servers/redis.ts'
import { keptCertificate, makeAuthority } from '../../shared/tls.ts'

const [state = '', publicHost = '', apiPort = '', natsPort = '', timeScale = '1'] = process.argv.slice(2)
const folder = (name: string) => {
  mkdirSync(join(state, name), { recursive: true, mode: 0o700 })
  return join(state, name)
}
const authority = await makeAuthority(folder('tls'))
const { certPath, keyPath } = await keptCertificate(authority, folder('tls'), 'centre', [
  '127.0.0.1',
  'localhost',
  publicHost,
])
const ca = join(folder('tls'), 'ca.pem')
const redis = await startRedis({ dir: folder('redis') })
const account = await prepareNatsAccount(join(folder('central'), 'nats-account'))
const nats = await startNats({
  dir: folder('nats'),
  configText: `${account.configText}\ntls ${JSON.stringify({ cert_file: certPath, key_file: keyPath })}`,
  tls: true,
})
const config = loadCentralConfig({
  args: {
    state: folder('central'),
    redis: redis.url,
    nats: nats.url,
    natsCa: ca,
    natsPublicUrl: `tls://${publicHost}:${natsPort}`,
    apiPort: 0,
    metricsPort: 0,
    tlsCert: certPath,
    tlsKey: keyPath,
    tlsCa: ca,
    publicUrl: `https://${publicHost}:${apiPort}`,
    timeScale: Number(timeScale),
  },
})
const central = await startCentral(config, makeLog('central', 'info', 1))
const token = readFileSync(join(folder('central'), 'admin.token'), 'utf8').trim()
const client = { url: central.apiUrl, token, ca: readFileSync(ca, 'utf8') }
writeFileSync(join(state, 'client.json'), JSON.stringify(client), { mode: 0o600 })
const ports = { api: Number(new URL(central.apiUrl).port), nats: nats.port }
console.log(JSON.stringify({ msg: 'outside.ready', ...ports }))

process.on('SIGTERM', async () => {
  await central.stop()
  await nats.stop()
  await redis.stop()
  process.exit(0)
})
