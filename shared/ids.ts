/**
 * Names of things, as branded strings, so that a bundle's id cannot be handed in where a session's is wanted.
 * Every program may use this file; it imports nothing.
 */
declare const brand: unique symbol
type Brand<T, B extends string> = T & { readonly [brand]: B }

/** `c` and ten base-32 characters, derived from (group, name): submitting the same campaign twice names the same one. */
export type CampaignId = Brand<string, 'CampaignId'>
export type StepName = Brand<string, 'StepName'>
/** `b`, a number counted up per group, and eight digits that name the group: unique over all groups. */
export type BundleId = Brand<string, 'BundleId'>
/** Given by a dispatcher in its welcome; a new hello makes a new one. */
export type SessionId = Brand<string, 'SessionId'>
export type SiteName = Brand<string, 'SiteName'>
/** A pilot's or relay's own name, unique at its site while it lives. */
export type HolderName = Brand<string, 'HolderName'>
/** `sha256:` and 64 hexadecimal digits. */
export type Digest = Brand<string, 'Digest'>

/** One task of a step of a campaign. `index` counts from 0. */
export interface TaskRef {
  campaign: CampaignId
  step: StepName
  index: number
}

/**
 * One attempt at a task: the task and one fence per hop (central's first, then the relay's).
 * Each dispatcher compares only its own fence.
 */
export interface AttemptRef extends TaskRef {
  bundle: BundleId
  fences: number[]
}

/** Names as messages carry them: mere strings. */
interface NamedTask {
  campaign: string
  step: string
  index: number
}

/** `campaign/step/index`, the form shown to people and written into every log line. */
export function taskPath(task: NamedTask): string {
  return `${task.campaign}/${task.step}/${task.index}`
}

/**
 * `campaign/step/index/fence[.fence]`: where an attempt keeps its files. Two attempts never share it,
 * so a late writer cannot touch the winner's output.
 */
export function attemptPath(attempt: NamedTask & { fences: readonly number[] }): string {
  return `${taskPath(attempt)}/${attempt.fences.join('.')}`
}
