/**
 * `npm test`: builds what the tests run, runs all of them, and ends with one line, "N passed, N failed", alone.
 * Arguments are passed on to vitest as file filters.
 */
import { launch } from '../shared/launch.mjs'

await launch(new URL('./all.ts', import.meta.url).href)
