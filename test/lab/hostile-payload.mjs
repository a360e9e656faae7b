/**
 * A payload that looks at everything it can reach and writes wherever it can. Needs Node and util-linux, nothing else.
 *
 *   hostile-payload.mjs leave NAME     leaves a mark of that name at every place that several payloads could share,
 *                                      prints "left", and stays until its standard input or the file `over` ends it
 *   hostile-payload.mjs look WORDS     writes seen.json: what it found, by place; WORDS is JSON:
 *                                      marks (names), ports ({name: [host, port]}), paths (of the host's), secrets (texts,
 *                                      spelt backwards, so that its own arguments hold none)
 */
import { spawnSync } from 'node:child_process'
import {
  closeSync,
  existsSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { createConnection, createServer } from 'node:net'
import { join } from 'node:path'
import process from 'node:process'

const [, , role, words] = process.argv
const FOLDERS = ['/tmp', '/var/tmp', '/dev/shm', '/dev/mqueue', '/run', '/run/lock', process.env.HOME ?? '/']
/** Whose System V queue it is stands in its key, because nothing else of it shows. */
const keyOf = (name) => `0x${Buffer.from(name.padEnd(4, '_').slice(-4)).toString('hex')}`

async function leave(name) {
  for (const folder of FOLDERS) {
    try {
      writeFileSync(join(folder, `mark-${name}`), '')
    } catch {
      // Not writable, or a queue that was made all the same.
    }
  }
  spawnSync('ipcmk', ['-Q', '-M', '64', '-S', '1'])
  const abstract = createServer().listen(`\0indraft-${name}`)
  const port = createServer((socket) => socket.end(`mark-${name}`))
  await new Promise((done) => port.listen(0, '127.0.0.1', done))
  writeFileSync('port', String(port.address().port))
  console.log(`left ${port.address().port} ${keyOf(name)}`)
  process.stdin.resume().on('end', () => process.exit(0))
  setTimeout(() => process.exit(0), Number(process.env.STAY_MS ?? 60_000))
  abstract.on('error', () => {})
}

const tryIt = (act) => {
  try {
    return act()
  } catch (error) {
    return error.code ?? error.message.split('\n')[0].slice(0, 80)
  }
}
const list = (folder) => tryIt(() => readdirSync(folder))
const asList = (found) => (Array.isArray(found) ? found : [])

async function connects(options, say) {
  return await new Promise((done) => {
    const socket = createConnection(options)
    let heard = ''
    const over = (how) => {
      socket.destroy()
      done(how)
    }
    socket.setTimeout(2000, () => over(`connected, heard "${heard.slice(0, 60)}"`))
    socket.on('error', (error) => over(error.code ?? error.message))
    socket.on('connect', () => say && socket.write(say))
    socket.on('data', (bytes) => {
      heard += bytes.toString('latin1').replace(/\s+/g, ' ')
    })
    socket.on('close', () => over(`connected, heard "${heard.slice(0, 60)}"`))
  })
}

/** Every file below these whose content or name has one of the texts; bounded in number and size. */
function search(folders, texts) {
  const found = new Set()
  let looked = 0
  const walk = (folder, depth) => {
    for (const name of asList(list(folder))) {
      const path = join(folder, name)
      if (looked++ > 20_000 || depth > 12) return
      const facts = tryIt(() => lstatSync(path))
      if (typeof facts === 'string') continue
      if (facts.isDirectory()) walk(path, depth + 1)
      else if (facts.isFile() && facts.size < 256 * 1024) {
        const text = tryIt(() => readFileSync(path, 'latin1'))
        if (typeof text === 'string' && texts.some((one) => text.includes(one))) found.add(path)
      }
    }
  }
  for (const folder of folders) walk(folder, 0)
  return [...found]
}

function processes() {
  const seen = []
  for (const pid of asList(list('/proc')).filter((name) => /^\d+$/.test(name))) {
    const argv = tryIt(() => readFileSync(`/proc/${pid}/cmdline`, 'latin1'))
      .replaceAll('\0', ' ')
      .trim()
    const environment = tryIt(() => readFileSync(`/proc/${pid}/environ`, 'latin1'))
    seen.push({
      pid: Number(pid),
      argv: argv.slice(0, 120),
      environment,
      root: tryIt(() => list(`/proc/${pid}/root/`)),
    })
  }
  return seen
}

async function look({ marks, ports, paths, secrets: backwards }) {
  const secrets = backwards.map((text) => [...text].reverse().join(''))
  const all = processes()
  const status = readFileSync('/proc/self/status', 'latin1')
  const known = (text) => secrets.some((secret) => text.includes(secret))
  const seen = {
    uid: process.getuid(),
    groups: process.getgroups(),
    // No privilege, none to be gained by a program's mode or file, and no core of it on anybody's disk.
    privileges: /^CapEff:\s+(\S+)/m.exec(status)?.[1],
    noNewPrivileges: /^NoNewPrivs:\s+(\d)/m.exec(status)?.[1],
    coreBytes: /^Max core file size\s+\S+\s+(\S+)/m.exec(readFileSync('/proc/self/limits', 'latin1'))?.[1],
    keys: tryIt(() => readFileSync('/proc/keys', 'latin1').trim().split('\n').filter(Boolean)),
    devices: asList(list('/dev')),
    processes: all.map(({ argv }) => argv),
    marksInProcesses: all.filter(({ environment }) => environment.includes('STAY_MS')).length,
    secretsInProcesses: all.filter(({ argv, environment }) => known(argv + environment)).length,
    secretsInOwnEnvironment: known(JSON.stringify(process.env)),
    environment: Object.keys(process.env).sort(),
    // Beyond its own input and output.
    descriptors: asList(list('/proc/self/fd'))
      .filter((fd) => Number(fd) > 2)
      .map((fd) => tryIt(() => readlinkSync(`/proc/self/fd/${fd}`)))
      .filter((target) => !/^(\/dev\/null|pipe:|anon_inode:|\/proc\/\d+\/fd|ENOENT)/.test(target)),
    marksInFolders: FOLDERS.flatMap((folder) =>
      asList(list(folder))
        .filter((name) => name.startsWith('mark-'))
        .map((name) => `${folder}/${name}`),
    ),
    paths: paths.filter((path) => existsSync(path)),
    secretsInFiles: search(
      ['/etc', '/home', '/root', '/tmp', '/var', '/run', '/srv', '/shared', '/opt', '/dev'],
      secrets,
    ),
    sysv: readFileSync('/proc/sysvipc/msg', 'latin1').trim().split('\n').length - 1,
    sysvShm: readFileSync('/proc/sysvipc/shm', 'latin1').trim().split('\n').length - 1,
    abstract: {},
    abstractNames: (tryIt(() => readFileSync('/proc/net/unix', 'latin1')).match(/@indraft-\S+/g) ?? []).sort(),
    ports: {},
    interfaces: asList(list('/sys/class/net')),
    writable: [],
    gained: {},
  }
  for (const name of marks) seen.abstract[name] = await connects({ path: `\0indraft-${name}` })
  for (const [name, [host, port]] of Object.entries(ports)) {
    seen.ports[name] = await connects(
      { host, port },
      'CONNECT {"verbose":true,"pedantic":false}\r\nSUB indraft.> 1\r\nPING\r\n',
    )
  }
  for (const folder of [
    '/',
    '/etc',
    '/usr',
    '/bin',
    '/srv',
    '/shared',
    '/images',
    '/home',
    '/root',
    '/opt',
    '/sys',
    '/proc/sys/kernel',
    '/proc/sys/net',
    '/sys/fs/cgroup',
    '/dev',
    '/run',
  ]) {
    const path = join(folder, 'hostile')
    const written = tryIt(() => {
      writeFileSync(path, 'x')
      rmSync(path)
      return true
    })
    if (written === true) seen.writable.push(folder)
  }
  // More than it was given, by a user namespace of its own.
  const inNamespace = (script) => spawnSync('unshare', ['-Urm', 'sh', '-c', script], { encoding: 'utf8' })
  seen.gained.userNamespace = inNamespace('id -u').stdout?.trim() === '0'
  mkdirSync('host', { recursive: true })
  seen.gained.hostRoot = inNamespace('mount --rbind /proc/1/root host && ls host/shared/home').status === 0
  seen.gained.kernelSetting = inNamespace('echo x >/proc/sys/kernel/core_pattern').status === 0
  seen.gained.device = inNamespace('mknod disk b 8 0 && head -c 1 disk').status === 0
  // Opened, not written.
  seen.gained.kernelTrigger = tryIt(() => closeSync(openSync('/proc/sysrq-trigger', 'w'))) === undefined
  seen.gained.kernelLog = tryIt(() => closeSync(openSync('/dev/kmsg'))) === undefined
  // Lies about its end; the wrapper's own word comes after it, and is about this task alone.
  tryIt(() => writeFileSync('/indraft/run', '#!/bin/sh\nexit 0\n'))
  seen.gained.wrapper = tryIt(() => readFileSync('/indraft/run', 'utf8')).length < 50
  writeFileSync('seen.json', JSON.stringify(seen, null, 2))
}

if (role === 'leave') await leave(words)
else await look(JSON.parse(words))
