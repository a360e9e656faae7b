import { mkdtempSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { connect, createServer, type TLSSocket } from 'node:tls'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { issueCertificate, keptCertificate, makeAuthority } from './tls.ts'

let dir: string
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'indraft-tls-'))
})
afterEach(() => rmSync(dir, { recursive: true, force: true }))

/** Connects once and says whether the client trusted the server. */
async function handshake(server: { cert: string; key: string }, ca: string, servername: string): Promise<string> {
  const listener = createServer(server, (socket) => socket.end())
  await new Promise<void>((done) => listener.listen(0, '127.0.0.1', done))
  const { port } = listener.address() as { port: number }
  try {
    return await new Promise<string>((done) => {
      const host = servername === '127.0.0.1' ? {} : { servername }
      const socket: TLSSocket = connect({ port, host: '127.0.0.1', ca, ...host }, () => {
        done(`trusted ${socket.getProtocol()}`)
        socket.destroy()
      })
      socket.on('error', (error: NodeJS.ErrnoException) => done(error.code ?? error.message))
    })
  } finally {
    await new Promise((done) => listener.close(done))
  }
}

test('tls - a certificate of our own is trusted for its hosts and by its authority only', async () => {
  const authority = await makeAuthority(join(dir, 'a'))
  const other = await makeAuthority(join(dir, 'b'))
  const server = await issueCertificate(authority, { commonName: 'relay', hosts: ['localhost', '127.0.0.1'] })
  expect(await handshake(server, authority.ca, '127.0.0.1')).toBe('trusted TLSv1.3')
  expect(await handshake(server, authority.ca, 'localhost')).toBe('trusted TLSv1.3')
  expect(await handshake(server, authority.ca, 'elsewhere.example')).toBe('ERR_TLS_CERT_ALTNAME_INVALID')
  expect(await handshake(server, other.ca, 'localhost')).toMatch(/UNABLE_TO_|SELF_SIGNED/)
})

test('tls - the authority and its certificates are kept, and readable by their owner only', async () => {
  const first = await makeAuthority(dir)
  const again = await makeAuthority(dir)
  expect(again.ca).toBe(first.ca)
  expect(statSync(join(dir, 'ca-key.pem')).mode & 0o777).toBe(0o600)
  const issued = await keptCertificate(first, dir, 'relay', ['localhost'])
  expect(statSync(issued.keyPath).mode & 0o777).toBe(0o600)
  expect((await keptCertificate(again, dir, 'relay', ['localhost'])).cert).toBe(issued.cert)
  // Signed again by the authority as it was loaded from its folder, because a host was missing.
  const wider = await keptCertificate(again, dir, 'relay', ['localhost', '10.0.0.1'])
  expect(wider.cert).not.toBe(issued.cert)
  expect(await handshake(wider, again.ca, 'localhost')).toBe('trusted TLSv1.3')
})

test('tls - a certificate of another authority is issued anew', async () => {
  const first = await keptCertificate(await makeAuthority(join(dir, 'a')), dir, 'relay', ['localhost'])
  const second = await keptCertificate(await makeAuthority(join(dir, 'b')), dir, 'relay', ['localhost'])
  expect(second.cert).not.toBe(first.cert)
})
