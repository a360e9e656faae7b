/** Handlers about people who are not served any more. */
import type { Bans } from '../bans.ts'
import type { Handlers } from './server.ts'

export function banHandlers(bans: Bans): Pick<Handlers, 'addBan' | 'listBans' | 'liftBan'> {
  return {
    addBan: async ({ body }, caller) => await bans.ban(body.subject, body.reason, caller.subject),
    listBans: async () => ({ bans: await bans.list() }),
    liftBan: async ({ body }, caller) => ({ lifted: await bans.lift(body.subject, caller.subject) }),
  }
}
