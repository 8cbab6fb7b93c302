// A server that reports every request it reads: reader.mjs SINK SOCKET… where
// SOCKET ends in .h1 or .h2. Ends when the sink closes.
import net from 'node:net'
import http from 'node:http'
import http2 from 'node:http2'
import crypto from 'node:crypto'

const sink = net.connect(process.argv[2])
const say = o => sink.write(JSON.stringify(o) + '\n')
sink.on('close', () => process.exit(0))
let rest = ''
sink.on('data', d => { // marks come back behind everything that was read before
  rest += d
  for (let i; (i = rest.indexOf('\n')) >= 0; rest = rest.slice(i + 1)) say({kind: 'mark', mark: rest.slice(0, i)})
})

let conns = 0
const number = socket => socket.number ??= ++conns
function reading(lane, socket, req, method, target, host, headers, proto) {
  const r = {lane, conn: number(socket), nth: socket.nth = (socket.nth ?? 0) + 1, proto, method, target, host, headers}
  try {
    const u = new URL(target, 'http://up.test')
    Object.assign(r, {origin: u.host, path: u.pathname, query: [...u.searchParams]})
  } catch (e) { r.origin = String(e) }
  return r
}
function collect(lane, req, res, r) {
  const hash = crypto.createHash('sha256')
  let length = 0
  say({kind: 'head', ...r}) // at once: a body that breaks off ends after its connection
  req.on('data', c => { hash.update(c); length += c.length })
  req.on('end', () => {
    if (req.aborted || req.stream?.aborted) return // Node says end of what was reset, too
    say({kind: 'request', conn: r.conn, nth: r.nth, lane, length, hash: hash.digest('hex'), trailers: Object.keys(req.trailers ?? {})})
    res.writeHead(200, {'x-read': 'yes', 'content-length': 2})
    res.end('ok')
  })
  req.on('error', () => {})
}
function h1(lane) {
  const s = http.createServer({maxHeaderSize: 1 << 20, requestTimeout: 0, headersTimeout: 0, keepAliveTimeout: 60000})
  s.maxHeadersCount = 0
  s.on('request', (req, res) => {
    const headers = []
    for (let i = 0; i < req.rawHeaders.length; i += 2) headers.push([req.rawHeaders[i], req.rawHeaders[i + 1]])
    collect(lane, req, res, reading(lane, req.socket, req, req.method, req.url, req.headers.host ?? '', headers, req.httpVersion))
  })
  s.on('clientError', (e, socket) => { say({kind: 'refused', lane, conn: number(socket), why: String(e.code ?? e)}); socket.destroy() })
  return s
}
function h2(lane) {
  const s = http2.createServer({maxHeaderListPairs: 1000})
  s.on('request', (req, res) => {
    const headers = []
    for (let i = 0; i < req.rawHeaders.length; i += 2) if (req.rawHeaders[i][0] !== ':') headers.push([req.rawHeaders[i], req.rawHeaders[i + 1]])
    collect(lane, req, res, reading(lane, req.stream.session, req, req.method, req.url, req.authority ?? '', headers, '2'))
  })
  s.on('sessionError', e => say({kind: 'refused', lane, why: String(e.code ?? e)}))
  s.on('session', session => session.on('error', () => {}))
  return s
}
let open = process.argv.length - 3
for (const path of process.argv.slice(3)) {
  const lane = path.split('/').pop().split('.')[0]
  const s = path.endsWith('.h2') ? h2(lane) : h1(lane)
  s.on('error', e => { console.error(e); process.exit(1) })
  s.listen(path, () => { if (--open === 0) say({kind: 'ready'}) })
}
