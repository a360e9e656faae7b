import { expect, test } from 'vitest'
import { parseImageName, promisedDigest } from './image-name.ts'

const digest = 'a'.repeat(64)

test.each([
  ['host', { kind: 'host' }],
  ['/images/x.sif', { kind: 'path', path: '/images/x.sif' }],
  ['file:///images/x', { kind: 'path', path: '/images/x' }],
  [`https://h/x.sif#sha256:${digest}`, { kind: 'url', url: 'https://h/x.sif', sha256: digest }],
  [`http://h:8000/x?v=1#sha256:${digest}`, { kind: 'url', url: 'http://h:8000/x?v=1', sha256: digest }],
  [`docker://r/x@sha256:${digest}`, { kind: 'registry', reference: `docker://r/x@sha256:${digest}` }],
])('image name - %s', (text, name) => {
  expect(parseImageName(text)).toEqual(name)
})

test.each([
  ['https://h/x.sif', /checksum/],
  [`https://h/x.sif#md5:${digest}`, /checksum/],
  [`https://h/x.sif#sha256:${digest.slice(1)}`, /checksum/],
  [`https:///x y#sha256:${digest}`, /checksum/],
  ['docker://r/x:latest', /digest/],
  ['images/x.sif', /a path/],
  ['', /host/],
])('image name - "%s" is refused with what was expected', (text, expected) => {
  expect(parseImageName(text)).toMatch(expected)
})

test.each([
  [`https://h/x.sif#sha256:${digest}`, `sha256:${digest}`],
  [`docker://r/x@sha256:${digest}`, `sha256:${digest}`],
  [`oras://r/x@sha256:${digest}`, `sha256:${digest}`],
  [`/images/x.sif#sha256:${digest}`, null],
  [`/images/x.sif@sha256:${digest}`, null],
  [`file:///images/x.sif#sha256:${digest}`, null],
  [`library://r/x@sha256:${digest}`, null],
  ['host', null],
])('image name - what %s promises of its content', (text, promised) => {
  expect(promisedDigest(text)).toBe(promised)
})
