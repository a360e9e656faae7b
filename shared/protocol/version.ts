/** The version every message carries. Messages are added, not changed; a change that old peers cannot read raises it. */
export const PROTOCOL_VERSION = 1
/** Versions that this build answers. */
export const SPOKEN_VERSIONS: readonly number[] = [1]
/** No message on any link is larger than this, after encoding. Larger things go by digest through files. */
export const MAX_MESSAGE_BYTES = 48 * 1024
