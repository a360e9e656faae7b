#!/usr/bin/env node
/** Bundles the pilot to one file, dist/indraft-pilot.mjs, that needs only Node 22 or newer beside it. */
import { chmod } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'

const here = dirname(fileURLToPath(import.meta.url))
const outfile = process.argv[2] ?? join(here, '..', 'dist', 'indraft-pilot.mjs')

/** Sixty languages of zod's messages, of which one is used: a quarter of the bundle. */
const oneLanguage = {
  name: 'one-language',
  setup({ onLoad }) {
    onLoad({ filter: /zod\/v4\/locales\/index\.js$/ }, () => ({ contents: "export { default as en } from './en.js'" }))
  },
}

await build({
  entryPoints: [join(here, 'cli.ts')],
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
