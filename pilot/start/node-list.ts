/** Slurm's short form of node names, `n[001-004,010],gpu7`, taken apart without asking the controller. Pure. */

/** A list that cannot be read is one name. */
export function expandNodeList(text: string): string[] {
  if (text === '' || text === '(null)') return []
  return splitOutside(text).flatMap(expandOne)
}

/** At commas that are in no bracket. */
function splitOutside(text: string): string[] {
  const parts: string[] = []
  let depth = 0
  let part = ''
  for (const letter of text) {
    if (letter === '[') depth++
    if (letter === ']') depth--
    if (letter === ',' && depth === 0) {
      parts.push(part)
      part = ''
    } else part += letter
  }
  return [...parts, part].filter((one) => one !== '')
}

function expandOne(text: string): string[] {
  const match = /^([^[]*)\[([\d,-]+)\](.*)$/.exec(text)
  if (!match) return [text]
  const [, before = '', ranges = '', after = ''] = match
  const ends = expandOne(after)
  return ranges.split(',').flatMap((range) => {
    const [first = '', last = first] = range.split('-')
    const names: string[] = []
    for (let at = Number(first); at <= Number(last) && names.length < 10_000; at++) {
      const number = String(at).padStart(first.length, '0')
      names.push(...ends.map((end) => `${before}${number}${end}`))
    }
    return names
  })
}
