#!/usr/bin/env node
/** The command `indraft-pilot`. What it can do is in cli.ts; this file only finds a Node that can run it. */
import { launch } from '../shared/launch.mjs'

await launch(new URL('./cli.ts', import.meta.url).href)
