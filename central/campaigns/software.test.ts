import { expect, test } from 'vitest'
import { checkCampaign } from './check.ts'

const file = (step: string, defaults = '') => `
indraft: 1
name: with-software
group: /vo.example/prod
${defaults}
steps:
  reconstruct:
    image: host
    command: [reco]
${step}`

function stepOf(text: string) {
  const checked = checkCampaign(text, {}, 'ada')
  if ('problems' in checked) throw new Error(JSON.stringify(checked.problems))
  return checked.plan.steps[0]!
}

test('software - becomes a need by name, and what to load stays in the template', () => {
  const { needs, template, matchClass } = stepOf(
    file(
      '    software: {cvmfs: [conditions.vo.example, a.vo.example], eessi: {version: "2025.06", modules: [ROOT/6.30]}}',
    ),
  )
  expect(needs.software).toEqual(['cvmfs:a.vo.example', 'cvmfs:conditions.vo.example', 'eessi:2025.06'])
  expect(template.needs).toEqual(needs)
  expect(template.software).toEqual({
    cvmfs: ['conditions.vo.example', 'a.vo.example'],
    eessi: { version: '2025.06', modules: ['ROOT/6.30'] },
  })
  expect(matchClass).not.toBe(stepOf(file('')).matchClass)
})

test('software - none is asked for by none, and a step says otherwise than the defaults', () => {
  expect(stepOf(file(''))).not.toHaveProperty('needs.software')
  const defaults = 'defaults: {software: {cvmfs: [a.vo.example], eessi: {version: "2023.06"}}}'
  expect(stepOf(file('', defaults)).needs.software).toEqual(['cvmfs:a.vo.example', 'eessi:2023.06'])
  expect(stepOf(file('    software: {cvmfs: []}', defaults)).needs.software).toEqual(['eessi:2023.06'])
})

test.each([
  ['{cvmfs: [/cvmfs/a]}', 'steps.reconstruct.software.cvmfs[0]', 'a repository such as'],
  ['{eessi: {version: 2025.06}}', 'steps.reconstruct.software.eessi.version', 'a version in quotes'],
  [
    '{eessi: {version: "2025.06", modules: ["a;id"]}}',
    'steps.reconstruct.software.eessi.modules[0]',
    'a module such as',
  ],
  ['{spack: [x]}', 'steps.reconstruct.software.spack', 'cvmfs'],
])('software - %s is refused at %s', (software, path, words) => {
  const checked = checkCampaign(file(`    software: ${software}`), {}, 'ada')
  expect(checked).toMatchObject({ problems: [{ path, message: expect.stringContaining(words) }] })
})
