/**
 * What central answers a relay that asks which of its site's accepted results have outputs that a relay names:
 * `GET /files/accepted?from=<next of the page before>`. Newest first within a group, so that what is added meanwhile
 * hides nothing; an entry may come twice.
 */
import { z } from 'zod'

export const acceptedPageSchema = z.object({
  results: z.array(
    z.object({
      campaign: z.string(),
      step: z.string(),
      index: z.number(),
      /** Central's, then the relay's. */
      fences: z.array(z.number()),
      outputs: z.array(z.object({ path: z.string(), url: z.string() })),
    }),
  ),
  /** Where the next page begins; null: there is none. */
  next: z.string().nullable(),
})

export type AcceptedPage = z.infer<typeof acceptedPageSchema>
export type AcceptedResult = AcceptedPage['results'][number]
