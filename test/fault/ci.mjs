/** `npm run fault:ci`: see ci.ts. */
import { launch } from '../../shared/launch.mjs'

await launch(new URL('./ci.ts', import.meta.url).href)
