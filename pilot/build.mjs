#!/usr/bin/env node
/**
 * Bundles what a site runs to one file each, that need only Node 22.18 or newer beside them: dist/indraft-pilot.mjs, and
 * dist/indraft.mjs, the command with the relay in it. The centre itself runs from the repository, not from a bundle.
 *
 *   node pilot/build.mjs [--into=FOLDER] [indraft-pilot | indraft] ...
 */
import { chmod } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const programs = { 'indraft-pilot': 'pilot/cli.ts', indraft: 'central/cli/main.ts' }

/** Sixty languages of zod's messages, of which one is used: a quarter of the pilot's bundle. */
const oneLanguage = {
  name: 'one-language',
  setup({ onLoad }) {
    onLoad({ filter: /zod\/v4\/locales\/index\.js$/ }, () => ({ contents: "export { default as en } from './en.js'" }))
  },
}

const words = process.argv.slice(2)
const into = words.find((word) => word.startsWith('--into='))?.slice('--into='.length) ?? join(root, 'dist')
const wanted = words.filter((word) => !word.startsWith('--into='))
for (const name of wanted.length > 0 ? wanted : Object.keys(programs)) {
  if (!Object.hasOwn(programs, name)) throw new Error(`no program "${name}": ${Object.keys(programs).join(', ')}`)
  const outfile = join(into, `${name}.mjs`)
  await build({
    entryPoints: [join(root, programs[name])],
    outfile,
    bundle: true,
    platform: 'node',
    format: 'esm',
    target: 'node22',
    minify: true,
    legalComments: 'none',
    plugins: [oneLanguage],
    banner: {
      // Some dependencies are CommonJS and ask for require.
      js: "#!/usr/bin/env node\nimport { createRequire as indraftRequire } from 'node:module'; const require = indraftRequire(import.meta.url);",
    },
    // Optional native parts; both packages do without.
    external: ['msgpackr-extract', 'pino-pretty'],
  })
  await chmod(outfile, 0o755)
  console.log(outfile)
}
