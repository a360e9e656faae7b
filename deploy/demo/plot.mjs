/** Draws the demo's picture as SVG: measured points with errors beside the exact curve, and how far apart they are. */

const WIDTH = 900
const HEIGHT = 640
const LEFT = 84
const RIGHT = 868
const MAIN = { top: 84, bottom: 440 }
const PULLS = { top: 480, bottom: 572 }
const T = { from: 1.5, to: 3.1 }
const INK = '#1f2933'
const SOFT = '#7b8794'
const GRID = '#e4e7eb'
const CURVE = '#c2410c'
const POINT = '#1d4ed8'
const BAND = '#eff4ff'
const PULL_LIMIT = 4

const x = (temperature) => LEFT + ((temperature - T.from) / (T.to - T.from)) * (RIGHT - LEFT)
const y = (m) => MAIN.bottom - (m / 1.05) * (MAIN.bottom - MAIN.top)
const yPull = (pull) => {
  const middle = (PULLS.top + PULLS.bottom) / 2
  const shown = Math.max(-PULL_LIMIT, Math.min(PULL_LIMIT, pull))
  return middle - (shown / PULL_LIMIT) * ((PULLS.bottom - PULLS.top) / 2)
}
const f = (value) => value.toFixed(1)

function line(x1, y1, x2, y2, colour, more = '') {
  return `<line x1="${f(x1)}" y1="${f(y1)}" x2="${f(x2)}" y2="${f(y2)}" stroke="${colour}" ${more}/>`
}

function text(atX, atY, words, more = '') {
  return `<text x="${f(atX)}" y="${f(atY)}" ${more}>${words}</text>`
}

/** `points` and `verdict` as merge.mjs makes them. */
export function drawMagnetisation({ points, critical, exactMagnetisation, verdict }) {
  const size = points[0].size
  const parts = [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" width="${WIDTH}" height="${HEIGHT}"`,
    ` font-family="Helvetica, Arial, 'DejaVu Sans', sans-serif" font-size="14" fill="${INK}">`,
    `<rect width="${WIDTH}" height="${HEIGHT}" fill="#ffffff"/>`,
    text(LEFT, 34, 'Spontaneous magnetisation of the two-dimensional Ising model', 'font-size="20" font-weight="bold"'),
    text(
      LEFT,
      58,
      `${verdict.results} Wolff-cluster simulations of ${size} × ${size} spins, drawn in by pilots`,
      `fill="${SOFT}"`,
    ),
    ...axes(critical),
    curve(critical, exactMagnetisation),
    ...points.flatMap(latticeMean),
    ...points.flatMap(measuredPoint),
    ...points.filter(({ isCompared }) => isCompared).flatMap(pullBar),
    ...legend(size, verdict),
    '</svg>',
  ]
  return `${parts.join('\n')}\n`
}

function axes(critical) {
  const parts = []
  for (let m = 0; m <= 1.001; m += 0.2) {
    parts.push(line(LEFT, y(m), RIGHT, y(m), GRID))
    parts.push(text(LEFT - 10, y(m) + 5, m.toFixed(1), 'text-anchor="end"'))
  }
  const ticks = Array.from({ length: 9 }, (_, i) => 1.5 + 0.2 * i)
  for (const temperature of ticks) {
    for (const { top, bottom } of [MAIN, PULLS]) {
      parts.push(line(x(temperature), top, x(temperature), bottom, GRID))
    }
    parts.push(text(x(temperature), PULLS.bottom + 20, temperature.toFixed(1), 'text-anchor="middle"'))
  }
  const band = `x="${LEFT}" width="${RIGHT - LEFT}" y="${f(yPull(2))}" height="${f(yPull(-2) - yPull(2))}"`
  parts.push(`<rect ${band} fill="${BAND}"/>`)
  for (const pull of [-2, 0, 2]) {
    parts.push(line(LEFT, yPull(pull), RIGHT, yPull(pull), pull === 0 ? SOFT : GRID))
    parts.push(text(LEFT - 10, yPull(pull) + 5, String(pull).replace('-', '−'), 'text-anchor="end"'))
  }
  for (const { top, bottom } of [MAIN, PULLS]) {
    parts.push(line(x(critical), top, x(critical), bottom, SOFT, 'stroke-dasharray="2 4"'))
    const frame = `x="${LEFT}" y="${top}" width="${RIGHT - LEFT}" height="${bottom - top}"`
    parts.push(`<rect ${frame} fill="none" stroke="${INK}"/>`)
  }
  parts.push(
    text(
      x(critical) - 8,
      MAIN.top + 20,
      `T<tspan font-size="10" dy="4">c</tspan><tspan dy="-4"> = ${critical.toFixed(4)}</tspan>`,
      `fill="${SOFT}" text-anchor="end"`,
    ),
  )
  parts.push(text((LEFT + RIGHT) / 2, HEIGHT - 22, 'temperature T  (J / k)', 'text-anchor="middle"'))
  const middle = (MAIN.top + MAIN.bottom) / 2
  parts.push(text(30, middle, 'magnetisation m', `text-anchor="middle" transform="rotate(-90 30 ${f(middle)})"`))
  const low = (PULLS.top + PULLS.bottom) / 2
  parts.push(text(30, low, 'difference', `text-anchor="middle" font-size="12" transform="rotate(-90 30 ${f(low)})"`))
  parts.push(text(46, low, 'in errors', `text-anchor="middle" font-size="12" transform="rotate(-90 46 ${f(low)})"`))
  return parts
}

/** Drawn at even steps of m, so that the steep fall at the critical temperature comes out. */
function curve(critical, exactMagnetisation) {
  const temperatures = []
  for (let temperature = T.from; temperature < critical - 0.01; temperature += 0.005) temperatures.push(temperature)
  for (let gap = 0.01; gap > 1e-12; gap /= 1.6) temperatures.push(critical - gap)
  const fall = temperatures.map((temperature) => `${f(x(temperature))},${f(y(exactMagnetisation(temperature)))}`)
  const path = [...fall, `${f(x(critical))},${f(y(0))}`, `${f(x(T.to))},${f(y(0))}`]
  return `<polyline points="${path.join(' ')}" fill="none" stroke="${CURVE}" stroke-width="2.5" stroke-linejoin="round"/>`
}

function latticeMean({ temperature, absM }) {
  return [square(x(temperature), y(absM.mean))]
}

function square(atX, atY) {
  return `<rect x="${f(atX - 4)}" y="${f(atY - 4)}" width="8" height="8" fill="#ffffff" stroke="${SOFT}" stroke-width="1.3"/>`
}

/** The error of m is that of its square, taken through the root: near zero it is one-sided. */
function measuredPoint({ temperature, squared, magnetisation, isCompared }) {
  const low = y(Math.sqrt(Math.max(0, squared.mean - squared.error)))
  const high = y(Math.sqrt(Math.max(0, squared.mean + squared.error)))
  return marker(x(temperature), y(magnetisation), low, high, isCompared)
}

function marker(atX, atY, low, high, isCompared) {
  return [
    line(atX, low, atX, high, POINT, 'stroke-width="1.6"'),
    line(atX - 4, low, atX + 4, low, POINT, 'stroke-width="1.6"'),
    line(atX - 4, high, atX + 4, high, POINT, 'stroke-width="1.6"'),
    `<circle cx="${f(atX)}" cy="${f(atY)}" r="4.2" fill="${isCompared ? POINT : '#ffffff'}" stroke="${POINT}" stroke-width="1.6"/>`,
  ]
}

function pullBar({ temperature, pull }) {
  return [
    line(x(temperature), yPull(0), x(temperature), yPull(pull), POINT, 'stroke-width="1.6"'),
    `<circle cx="${f(x(temperature))}" cy="${f(yPull(pull))}" r="3.4" fill="${POINT}"/>`,
  ]
}

function legend(size, { chi2, compared, probability }) {
  const left = x(2.34)
  const rows = [
    [
      'curve',
      'exact: m = (1 − sinh(2/T)<tspan dy="-5" font-size="10">−4</tspan><tspan dy="5">)</tspan><tspan dy="-5" font-size="10">1/8</tspan><tspan dy="5"> (Onsager, Yang)</tspan>',
    ],
    ['point', 'measured, ± 1 standard error'],
    ['open', 'not compared: the lattice is too small'],
    ['square', `mean |m| of the ${size} × ${size} lattice`],
    ['none', `χ² = ${chi2.toFixed(1)} for ${compared} points  (probability ${probability.toFixed(2)})`],
  ]
  const top = MAIN.top + 24
  return rows.flatMap(([kind, words], i) => {
    const atY = top + 24 * i
    const label = text(left + 40, atY + 5, words, 'font-size="13"')
    if (kind === 'curve') return [line(left, atY, left + 28, atY, CURVE, 'stroke-width="2.5"'), label]
    if (kind === 'square') return [square(left + 14, atY), label]
    if (kind === 'none') return [label]
    return [...marker(left + 14, atY, atY + 7, atY - 7, kind === 'point'), label]
  })
}
