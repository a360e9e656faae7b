/**
 * What a server does with bytes that are no request: malformed, too large a header, too slow. They never reach a
 * handler, so they are answered here, in the form of every other refusal, and counted by whoever asks.
 */
import type { Socket } from 'node:net'
import type { ErrorCode } from './errors.ts'

const ANSWERS: Record<string, readonly [status: string, message: string]> = {
  ERR_HTTP_REQUEST_TIMEOUT: ['408 Request Timeout', 'The request took too long to arrive.'],
  HPE_HEADER_OVERFLOW: ['431 Request Header Fields Too Large', 'The headers are too large.'],
}
const ELSE = ['400 Bad Request', 'This is not a request of HTTP/1.1.'] as const

/** For the event `clientError` of node's HTTP and HTTPS servers. */
export function answerBrokenHttp(onRefused?: (code: ErrorCode) => void) {
  return (error: NodeJS.ErrnoException, socket: Pick<Socket, 'writable' | 'end' | 'destroy'>): void => {
    // The other end has gone: there is nobody to answer and nothing was refused.
    if (error.code === 'ECONNRESET' || !socket.writable) {
      socket.destroy()
      return
    }
    onRefused?.('request.invalid')
    const [status, message] = ANSWERS[error.code ?? ''] ?? ELSE
    const body = JSON.stringify({ code: 'request.invalid' satisfies ErrorCode, message })
    const head = [
      `HTTP/1.1 ${status}`,
      'Content-Type: application/json; charset=utf-8',
      `Content-Length: ${Buffer.byteLength(body)}`,
      'Connection: close',
    ]
    socket.end(`${head.join('\r\n')}\r\n\r\n${body}`, () => socket.destroy())
  }
}
