#!/usr/bin/env node
/** The command `indraft`. What it can do is in main.ts; this file only finds a Node that can run it. */
import { launch } from '../../shared/launch.mjs'

await launch(new URL('./main.ts', import.meta.url).href)
