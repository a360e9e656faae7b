/** `npm run fault`: see run.ts, whose first lines say what it is told and what it answers. */
import { launch } from '../../shared/launch.mjs'

await launch(new URL('./run.ts', import.meta.url).href)
