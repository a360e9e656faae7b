/** `npm run fault:mutants`: see run.ts. */
import { launch } from '../../../shared/launch.mjs'

await launch(new URL('./run.ts', import.meta.url).href)
