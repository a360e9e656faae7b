/**
 * One task of the demo: the two-dimensional Ising model at one temperature (units of J/k, no field), simulated with
 * Wolff's cluster updates on a periodic square lattice. Writes what it measured as JSON.
 *
 *   node ising.mjs --temperature 2.0 --seed 1 --size 64 --sweeps 500 --out result.json
 *
 * The same arguments give the same numbers wherever and however often the task runs.
 *
 * Two measures of order:
 *   far     the correlation of spins half a lattice apart in both directions. It goes to the square of the spontaneous
 *           magnetisation as the lattice grows, exponentially fast on either side of the critical temperature.
 *   absM    the mean absolute magnetisation of the lattice, which above the critical temperature stays above zero on
 *           any finite lattice.
 */
import { writeFileSync } from 'node:fs'
import { parseArgs } from 'node:util'

const { values } = parseArgs({
  options: {
    temperature: { type: 'string' },
    seed: { type: 'string' },
    size: { type: 'string', default: '64' },
    sweeps: { type: 'string', default: '500' },
    out: { type: 'string', default: 'result.json' },
    attempt: { type: 'string', default: '1' },
    'fails-first': { type: 'string', default: '' },
  },
})
const temperature = Number(values.temperature)
const seed = Number(values.seed)
const size = Number(values.size)
const sweeps = Number(values.sweeps)
if (!(temperature > 0) || !Number.isInteger(seed) || size % 2 !== 0 || !(sweeps > 0)) {
  console.error('needed: --temperature > 0, --seed integer, an even --size, --sweeps > 0')
  process.exit(2)
}

// For the demo: one task (temperature/seed) whose first attempt fails, to be seen tried again.
if (values['fails-first'] === `${values.temperature}/${values.seed}` && values.attempt === '1') {
  console.error(`this is the task ${values['fails-first']}, which the demo makes fail on its first attempt`)
  process.exit(1)
}

const startMs = performance.now()
const random = makeRandom(seed, Math.round(temperature * 1e6))
const measured = simulate(size, temperature, sweeps, random)
writeFileSync(values.out, `${JSON.stringify({ temperature, seed, size, sweeps, ...measured })}\n`)
console.log(`T = ${temperature}, seed ${seed}: |m| = ${measured.absM.mean.toFixed(4)}, ${measured.clusters} clusters`)
console.log(`${Math.round(performance.now() - startMs)} ms`)

/**
 * The first fifth of the sweeps only brings the lattice to rest, and shows how many clusters make a sweep (flip as many
 * spins as there are). That number then stays fixed: to measure whenever enough was flipped would favour the moments
 * after large clusters.
 */
function simulate(size, temperature, sweeps, random) {
  const count = size * size
  const spins = new Int8Array(count).fill(1)
  const stack = new Int32Array(count)
  const joins = 1 - Math.exp(-2 / temperature)
  let sum = count
  let clusters = 0

  /** Flips one cluster and returns its size. */
  const flipCluster = () => {
    const start = Math.floor(random() * count)
    const spin = spins[start]
    spins[start] = -spin
    stack[0] = start
    let depth = 1
    let flipped = 1
    while (depth > 0) {
      const site = stack[--depth]
      const x = site % size
      const row = site - x
      const neighbours = [
        row + (x + 1 === size ? 0 : x + 1),
        row + (x === 0 ? size - 1 : x - 1),
        site + size < count ? site + size : x,
        site >= size ? site - size : count - size + x,
      ]
      for (const neighbour of neighbours) {
        if (spins[neighbour] !== spin || random() >= joins) continue
        spins[neighbour] = -spin
        stack[depth++] = neighbour
        flipped++
      }
    }
    sum -= 2 * spin * flipped
    clusters++
    return flipped
  }

  let flipped = 0
  while (flipped < (count * sweeps) / 5) flipped += flipCluster()
  const clustersPerSweep = Math.max(1, Math.round((clusters * count) / flipped))
  const absM = []
  const far = []
  for (let sweep = 0; sweep < sweeps; sweep++) {
    for (let n = 0; n < clustersPerSweep; n++) flipCluster()
    absM.push(Math.abs(sum) / count)
    far.push(farCorrelation(spins, size))
  }
  return { clusters, absM: summary(absM), far: summary(far) }
}

/** Mean of s(x, y) s(x + L/2, y + L/2): half of the pairs is all of them. */
function farCorrelation(spins, size) {
  const half = size / 2
  let sum = 0
  for (let y = 0; y < half; y++) {
    for (let x = 0; x < size; x++) sum += spins[y * size + x] * spins[(y + half) * size + ((x + half) % size)]
  }
  return (2 * sum) / (size * size)
}

/** Mean and its standard error, from the scatter of 16 blocks, because neighbouring measurements are related. */
function summary(series) {
  const blocks = 16
  const length = Math.floor(series.length / blocks)
  const means = Array.from({ length: blocks }, (_, b) => mean(series.slice(b * length, (b + 1) * length)))
  const centre = mean(means)
  const variance = means.reduce((sum, value) => sum + (value - centre) ** 2, 0) / (blocks - 1)
  return { mean: mean(series), error: Math.sqrt(variance / blocks) }
}

function mean(list) {
  return list.reduce((sum, value) => sum + value, 0) / list.length
}

/** sfc32 (Chris Doty-Humphrey, PractRand), brought into a random state by its own first steps. Uniform in [0, 1). */
function makeRandom(...seeds) {
  let a = seeds[0] | 0
  let b = seeds[1] | 0
  let c = 0x9e3779b9 | 0
  let counter = 1
  const next = () => {
    const t = (((a + b) | 0) + counter) | 0
    counter = (counter + 1) | 0
    a = b ^ (b >>> 9)
    b = (c + (c << 3)) | 0
    c = ((c << 21) | (c >>> 11)) + t
    c |= 0
    return (t >>> 0) / 4294967296
  }
  for (let i = 0; i < 32; i++) next()
  return next
}
