/** The release, as package.json has it (version.test.ts holds them equal: the bundles have no package.json beside them). */
export const VERSION = '0.1.0'
