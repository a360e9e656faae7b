/**
 * The demo's last step: reads the results of all simulations, averages over seeds, compares with Onsager's exact
 * spontaneous magnetisation, and writes a table, a picture and a summary.
 *
 *   node merge.mjs --list inputs.txt --expect 240
 *
 * Fails when a result is missing or there twice, or when measurement and theory disagree.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { drawMagnetisation } from './plot.mjs'

const { values } = parseArgs({
  options: {
    list: { type: 'string', default: 'inputs.txt' },
    expect: { type: 'string' },
  },
})

/** Where the exact curve ends (Kramers and Wannier 1941). */
const CRITICAL = 2 / Math.log(1 + Math.SQRT2)
/** A point is compared when spins half a lattice apart are at least this many correlation lengths apart. */
const FAR_ENOUGH = 4.5
/** Less likely than this by chance: measurement and theory disagree. */
const LEAST_PROBABILITY = 0.001

/** L. Onsager 1949, C. N. Yang 1952. */
function exactMagnetisation(temperature) {
  return temperature < CRITICAL ? (1 - Math.sinh(2 / temperature) ** -4) ** (1 / 8) : 0
}

/** Along the axes, in lattice spacings (McCoy and Wu 1973): shorter by half below the critical temperature. */
function correlationLength(temperature) {
  const difference = -Math.log(Math.tanh(1 / temperature)) - 2 / temperature
  return temperature > CRITICAL ? 1 / difference : 1 / (-2 * difference)
}

function mean(list) {
  return list.reduce((sum, value) => sum + value, 0) / list.length
}

/** Mean and its standard error from the scatter of independent runs. */
function average(list) {
  const centre = mean(list)
  const variance = list.reduce((sum, value) => sum + (value - centre) ** 2, 0) / (list.length - 1)
  return { mean: centre, error: Math.sqrt(variance / list.length) }
}

/** Probability of a chi-square at least this large (Wilson and Hilferty 1931). */
function chanceOf(chi2, count) {
  const spread = 2 / (9 * count)
  const z = ((chi2 / count) ** (1 / 3) - (1 - spread)) / Math.sqrt(spread)
  // Upper tail of the normal distribution (Abramowitz and Stegun 26.2.17).
  const t = 1 / (1 + 0.2316419 * Math.abs(z))
  const series = t * (0.31938153 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
  const tail = (Math.exp((-z * z) / 2) / Math.sqrt(2 * Math.PI)) * series
  return z > 0 ? tail : 1 - tail
}

const paths = readFileSync(values.list, 'utf8').split('\n').filter(Boolean)
const results = paths.map((path) => JSON.parse(readFileSync(path, 'utf8')))
const runs = new Set(results.map(({ temperature, seed }) => `${temperature}/${seed}`))
if (runs.size !== results.length) {
  console.error(`${results.length} results but only ${runs.size} different ones: something was counted twice`)
  process.exit(3)
}
if (values.expect !== undefined && results.length !== Number(values.expect)) {
  console.error(`${results.length} results, ${values.expect} were expected: something was lost`)
  process.exit(3)
}

const temperatures = [...new Set(results.map(({ temperature }) => temperature))].sort((a, b) => a - b)
const points = temperatures.map((temperature) => {
  const here = results.filter((result) => result.temperature === temperature)
  const far = average(here.map((result) => result.far.mean))
  const exact = exactMagnetisation(temperature)
  return {
    temperature,
    runs: here.length,
    size: here[0].size,
    absM: average(here.map((result) => result.absM.mean)),
    squared: far,
    magnetisation: Math.sqrt(Math.max(0, far.mean)),
    exact,
    pull: (far.mean - exact ** 2) / far.error,
    isCompared: here[0].size / Math.SQRT2 >= FAR_ENOUGH * correlationLength(temperature),
  }
})

const compared = points.filter(({ isCompared }) => isCompared)
const chi2 = compared.reduce((sum, { pull }) => sum + pull ** 2, 0)
const probability = chanceOf(chi2, compared.length)
const agrees = compared.length > 0 && probability >= LEAST_PROBABILITY

const header = 'temperature,runs,m,m_squared,m_squared_error,m_exact,pull,compared,abs_m,abs_m_error'
const rows = points.map((point) =>
  [
    point.temperature,
    point.runs,
    point.magnetisation.toFixed(6),
    point.squared.mean.toFixed(6),
    point.squared.error.toFixed(6),
    point.exact.toFixed(6),
    point.pull.toFixed(2),
    point.isCompared ? 'yes' : 'no',
    point.absM.mean.toFixed(6),
    point.absM.error.toFixed(6),
  ].join(','),
)
const verdict = {
  results: results.length,
  points: points.length,
  compared: compared.length,
  chi2: Number(chi2.toFixed(2)),
  probability: Number(probability.toFixed(3)),
  largestPull: Number(Math.max(...compared.map(({ pull }) => Math.abs(pull))).toFixed(2)),
  agrees,
}
writeFileSync('magnetisation.csv', `${[header, ...rows].join('\n')}\n`)
writeFileSync('magnetisation.svg', drawMagnetisation({ points, critical: CRITICAL, exactMagnetisation, verdict }))
writeFileSync('summary.json', `${JSON.stringify(verdict, null, 2)}\n`)
console.log(JSON.stringify(verdict))
if (!agrees) {
  console.error(`measurement and exact solution disagree: chi2 ${chi2.toFixed(1)} for ${compared.length} points`)
  process.exit(1)
}
