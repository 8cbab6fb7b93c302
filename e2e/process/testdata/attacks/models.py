# Somebody else's key, in every place that a request has, over both protocols, and
# bodies that mean something else to the API than to whoever looks at them. What
# must not arrive says THIEF; the record of the upstream decides. Each request
# names its case in a field that the API ignores, so that the record can say it.
import gzip, zlib, threading, urllib.parse

def frames(sock, want, patience=4):
    """Answers of an HTTP/2 server until want streams have ended."""
    sock.settimeout(patience)
    buf, ended, heads = b'', set(), {}
    try:
        while len(ended) < want:
            d = sock.recv(65536)
            if not d: break
            buf += d
            while len(buf) >= 9:
                n = int.from_bytes(buf[:3], 'big')
                if len(buf) < 9 + n: break
                kind, flags, stream, data = buf[3], buf[4], int.from_bytes(buf[5:9], 'big'), buf[9:9 + n]
                buf = buf[9 + n:]
                if kind == 4 and not flags & 1: sock.sendall(frame(4, 1, 0, b''))
                if kind == 1: heads.setdefault(stream, data)
                if kind in (3, 7) or kind in (0, 1) and flags & 1: ended.add(stream)
    except OSError: pass
    return heads

def frame(kind, flags, stream, data):
    return len(data).to_bytes(3, 'big') + bytes([kind, flags]) + stream.to_bytes(4, 'big') + data

def varint(n):
    out = b''
    while n >= 128:
        out += bytes([n & 127 | 128]); n >>= 7
    return out + bytes([n])

def literal(headers):
    """Header fields, never indexed and not compressed (RFC 7541, 6.2.3)."""
    out = b''
    for k, v in headers:
        out += b'\x10'
        for s in (k, v):
            s = s if isinstance(s, bytes) else s.encode('latin1')
            out += (bytes([len(s)]) if len(s) < 127 else b'\x7f' + varint(len(s) - 127)) + s
    return out

def h2(host, method, path, headers, body=b'', trailers=()):
    s = connect(host, alpn='h2')
    if s.selected_alpn_protocol() != 'h2': raise RuntimeError('no HTTP/2')
    fields = [(':method', method), (':scheme', 'https'), (':authority', host), (':path', path)] + [(k.lower(), v) for k, v in headers]
    out = b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + frame(4, 0, 0, b'') + frame(1, 4 | (0 if body or trailers else 1), 1, literal(fields))
    for i in range(0, len(body), 16000):
        out += frame(0, 0 if trailers or i + 16000 < len(body) else 1, 1, body[i:i + 16000])
    if trailers: out += frame(1, 5, 1, literal([(k.lower(), v) for k, v in trailers]))
    s.sendall(out)
    head = frames(s, 1).get(1, b'')
    s.close()
    return 'HTTP/2 200' if b'\x88' in head[:4] else False

def h1(host, method, path, headers, body=b'', trailers=()):
    lines = ['%s %s HTTP/1.1' % (method, path), 'Host: ' + host] + ['%s: %s' % h for h in headers]
    if trailers:
        lines += ['Transfer-Encoding: chunked', 'Connection: close', '', '']
        return status('\r\n'.join(lines).encode('latin1') + b'%x\r\n' % len(body) + body + b'\r\n0\r\n' + b''.join(b'%s: %s\r\n' % (k.encode(), v.encode()) for k, v in trailers) + b'\r\n', host=host)
    lines += ['Content-Length: %d' % len(body), 'Connection: close', '', '']
    return status('\r\n'.join(lines).encode('latin1') + body, host=host)

T = 'THIEF-0123456789-0123456789'
B64 = base64.b64encode(('user:' + T).encode()).decode()
class Anthropic:
    name, host, path, key, slot, bearer = 'anthropic', 'api.anthropic.com', '/v1/messages', os.environ['ANTHROPIC_API_KEY'], 'X-Api-Key', ''
    shaped = 'sk-ant-api03-' + T
    files, fields = '/v1/files', []
    accounts = ['Anthropic-Workspace-Id', 'Anthropic-User-Profile-Id', 'Anthropic-Organization-Id', 'X-Organization-Uuid']
    def body(self, mark): return {'model': 'm', 'max_tokens': 1, 'metadata': {'user_id': mark}, 'messages': [{'role': 'user', 'content': 'hi'}]}
class OpenAI:
    name, host, path, key, slot, bearer = 'openai', 'api.openai.com', '/v1/responses', os.environ['OPENAI_API_KEY'], 'Authorization', 'Bearer '
    shaped = 'sk-proj-' + T
    files, fields = '/v1/files', [('purpose', 'batch')]
    accounts = ['OpenAI-Organization', 'OpenAI-Project', 'X-Openai-Organization']
    def body(self, mark): return {'model': 'm', 'input': 'hi', 'safety_identifier': mark}
class Gemini:
    name, host, path, key, slot, bearer = 'gemini', 'generativelanguage.googleapis.com', '/v1beta/models/gemini:generateContent', os.environ['GEMINI_API_KEY'], 'X-Goog-Api-Key', ''
    shaped = 'AIza' + 'THIEF' + 'x' * 40
    files, fields = None, []
    accounts = ['X-Goog-User-Project', 'X-Goog-Request-Params', 'X-Server-Timeout-Project']
    def body(self, mark): return {'contents': [{'role': 'user', 'parts': [{'text': 'hi'}]}], 'labels': {'mark': mark}}

def stripped(id, what, f):
    """The request may pass, without what was added to it: the record tells."""
    try: f()
    except Exception: pass
    say(id, what, 'sent')

number = 0
def case(p, how, id, what, edit=None, headers=None, path=None, body=None, trailers=(), key=True, type='application/json', method='POST', expect=attack):
    """One request: the right one but for what the case changes."""
    global number
    number += 1
    mark = 'case-%d' % number
    b = body(p, mark) if callable(body) else body if body is not None else p.body(mark)
    if edit: edit(b)
    if not isinstance(b, bytes): b = json.dumps(b).encode()
    hs = [('Content-Type', type)] if type else []
    if key: hs.append((p.slot, p.bearer + p.key))
    expect(id, '%s %s %s' % (p.name, how.__name__, what), lambda: how(p.host, method, path or p.path, hs + list(headers or []), b, trailers))

def put(*place):
    def edit(b):
        for k in place[:-1]: b = b.setdefault(k, {})
        b[place[-1]] = T
    return edit

def form(p, mark): return ('a=' + mark + '&api_key=' + T).encode()
def multipart(parts):
    return b''.join(('--x\r\nContent-Disposition: form-data; name="%s"%s\r\n%s\r\n%s\r\n' % (n, '; filename="a.txt"' if f else '', extra, v)).encode() for n, v, f, extra in parts) + b'--x--\r\n'

MP = 'multipart/form-data; boundary=x'
for p in (Anthropic(), OpenAI(), Gemini()):
    for how in (h1, h2):
        case(p, how, 'EXF-01', 'the right request', expect=control)
        # Any header, with and without the session's own key beside it.
        for own in (False, True):
            beside = ' beside the own' if own else ''
            for name, value in [('X-Api-Key', T), ('Authorization', 'Bearer ' + T), ('Authorization', T), ('Authorization', 'Basic ' + B64), ('Authorization', 'Token token="%s"' % T), ('Proxy-Authorization', 'Basic ' + B64), ('Cookie', 'session=' + T), ('X-Goog-Api-Key', T), ('Api-Key', T), ('X-Auth-Token', T), ('X-Access-Token', T), ('Private-Token', T), ('X-Amz-Security-Token', T), ('Openai-Api-Key', T), ('Anthropic-Api-Key', T), ('X-Custom', p.shaped), ('User-Agent', p.shaped), ('X-Stainless-Retry-Count', p.shaped), ('Accept-Language', p.shaped), ('Referer', 'https://x/?key=' + T), ('X-Whatever', T), ('Sec-Websocket-Protocol', 'openai-insecure-api-key.' + T), ('Content-Disposition', p.shaped)]:
                case(p, how, 'EXF-01', name + beside, headers=[(name, value)], key=own, expect=stripped if own and name in ('X-Whatever', 'Referer') else attack)
        # The right header twice, in both orders, and longer than it should be.
        own, thief = (p.slot, p.bearer + p.key), (p.slot, p.bearer + T)
        for what, hs in {'own, foreign': [own, thief], 'foreign, own': [thief, own], 'in one line': [(p.slot, p.bearer + p.key + ', ' + p.bearer + T)], 'foreign first in one line': [(p.slot, p.bearer + T + ', ' + p.key)], 'a longer one': [(p.slot, p.bearer + p.key + T)], 'foreign, space, own': [(p.slot, p.bearer + T + ' ' + p.key)], 'other case of the name': [own, (p.slot.swapcase(), p.bearer + T)], 'with an underscore': [own, (p.slot.replace('-', '_') + ('_' if '-' not in p.slot else ''), T)], 'another scheme': [own, ('Authorization', 'Negotiate ' + T)]}.items():
            case(p, how, 'EXF-01', 'the slot: ' + what, headers=hs, key=False)
        for q in ['key=', 'api_key=', 'api-key=', 'apikey=', 'access_token=', 'token=', 'x-api-key=', 'k%65y=', 'KEY=', 'auth=', 'authorization=Bearer%20', 'oauth_token=', '$httpHeaders=Authorization:', 'beta=true&key=', 'alt=sse&key=', 'a[api_key]=', 'x=', 'key=&key=']:
            case(p, how, 'EXF-01', '?' + q, path=p.path + '?' + q + (p.shaped if q == 'x=' else T))
        for what, path in {'the end of the path': p.path + '/' + p.shaped, 'a matrix parameter': p.path + ';key=' + T, 'a fragment': p.path + '#' + T, 'another model': '/v1beta/models/' + p.shaped + ':generateContent', 'the user of an absolute address': 'https://%s@%s%s' % (T, p.host, p.path)}.items():
            case(p, how, 'EXF-01', 'path: ' + what, path=path)
        for place in [('api_key',), ('apiKey',), ('access_token',), ('authorization',), ('x-api-key',), ('extra_headers', 'Authorization'), ('extra_body', 'api_key'), ('metadata', 'api_key'), ('config', 'httpOptions', 'headers', 'x-goog-api-key'), ('organization',), ('workspace_id',), ('project',), ('user_profile_id',)]:
            case(p, how, 'EXF-01', 'JSON ' + '.'.join(place), edit=put(*place))
        case(p, how, 'EXF-01', 'a form', body=form, type='application/x-www-form-urlencoded')
        case(p, how, 'EXF-01', 'multipart', body=multipart([('api_key', T, False, '')]), type=MP)
        if p.files:
            right = [(n, v, False, '') for n, v in p.fields]
            case(p, how, 'EXF-01', 'an upload', path=p.files, body=multipart(right + [('file', 'hello', True, '')]), type=MP, expect=control)
            for what, parts in {'a field': [('api_key', T, False, '')], 'a field behind the file': [('file', 'hello', True, ''), ('authorization', T, False, '')], 'a header of a part': [('file', 'hello', True, 'X-Api-Key: ' + T + '\r\n')], 'another field': [('workspace', T, False, '')], 'the name of a file': [('api_key', T, True, '')]}.items():
                case(p, how, 'EXF-01', 'an upload with ' + what, path=p.files, body=multipart(right + parts), type=MP)
            case(p, how, 'EXF-01', 'an upload with the foreign key', path=p.files, body=multipart(right + [('file', T, True, '')]), type=MP, headers=[(p.slot, p.bearer + T)], key=False)
        for name in [p.slot, 'X-Api-Key', 'Authorization', 'Cookie', 'X-Whatever']:
            case(p, how, 'EXF-01', 'a trailer ' + name, trailers=[(name, T)], expect=stripped)
        for enc, f in {'gzip': gzip.compress, 'deflate': zlib.compress, 'br': lambda b: b, 'zstd': lambda b: b, 'identity, gzip': gzip.compress, 'x-gzip': gzip.compress, 'aws-chunked': lambda b: b}.items():
            case(p, how, 'PXY-33', 'compressed: ' + enc, body=lambda p, m: f(json.dumps({**p.body(m), 'api_key': T}).encode()), headers=[('Content-Encoding', enc)])
        for name in p.accounts:
            case(p, how, 'EXF-07', 'account ' + name, headers=[(name, T)], expect=stripped)
        # The placeholder where it doesn't belong; the record looks for the real key.
        for what, kw in {'another header': {'headers': [('X-Foo', p.key)]}, 'User-Agent': {'headers': [('User-Agent', p.key)]}, 'Basic': {'headers': [('Authorization', 'Basic ' + base64.b64encode(('x:' + p.key).encode()).decode())]}, 'query': {'path': p.path + '?x=' + p.key}, 'path': {'path': p.path + '/' + p.key}, 'Cookie': {'headers': [('Cookie', 'a=' + p.key)]}, 'twice': {'headers': [(p.slot, p.bearer + p.key)]}, 'a JSON key field': {'edit': lambda b: b.update(api_key=p.key)}, 'a trailer': {'trailers': [(p.slot, p.bearer + p.key)], 'expect': stripped}}.items():
            case(p, how, 'CRD-10', 'the placeholder in ' + what, **kw)
        say('CRD-10', p.name + ' text', 'sent', case(p, how, 'CRD-10', 'the placeholder as text', edit=lambda b: b.update({'system': p.key} if p.name == 'anthropic' else {'instructions': p.key} if p.name == 'openai' else {'systemInstruction': {'parts': [{'text': p.key}]}}), expect=control))
        # At another provider's host.
        for o in (Anthropic, OpenAI, Gemini):
            if o.name != p.name: case(p, how, 'CRD-10', 'the placeholder of ' + o.name, headers=[(p.slot, p.bearer + o.key)], key=False)

# WebSocket: what a browser would do, who can set no header.
def handshake(protocols, host='api.openai.com', path='/v1/realtime?model=m', head=''):
    s = connect(host)
    s.sendall(('GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n%s%s\r\n' % (path, host, 'Sec-WebSocket-Protocol: %s\r\n' % protocols if protocols else '', head)).encode())
    r = s.recv(4096)
    s.close()
    return r.split(b'\r\n')[0].decode() if b' 101 ' in r.split(b'\r\n')[0] else False
own = 'Authorization: Bearer %s\r\n' % OpenAI.key
control('PXY-23', 'a WebSocket', lambda: handshake('realtime', head=own))
for what, f in {'a subprotocol': lambda: handshake('realtime, openai-insecure-api-key.' + T), 'a subprotocol beside the own key': lambda: handshake('realtime, openai-insecure-api-key.' + T, head=own), 'another name': lambda: handshake('realtime, bearer.' + T, head=own), 'a foreign header': lambda: handshake('realtime', head='Authorization: Bearer %s\r\n' % T), 'the query': lambda: handshake('realtime', path='/v1/realtime?model=m&api_key=' + T, head=own)}.items(): attack('EXF-01', 'WebSocket, ' + what, f)
stripped('EXF-07', 'WebSocket, an organisation', lambda: handshake('realtime, openai-organization.' + T, head=own))

# PXY-33: encodings of a request that has MCP servers in it, or an address to fetch.
M = json.dumps(Anthropic().body('m'))[:-1]
mcp = ',"mcp_servers":[{"type":"url","url":"https://THIEF.test"}]}'
for what, b, type in [('as it is', M + mcp, None), ('escaped', M + mcp.replace('_', '\\u005f'), None), ('twice', M + ',"mcp_servers":[]' + mcp, None), ('behind the end', M + '}' + mcp[1:], None), ('a second document', M + '}\n{' + mcp[1:], None), ('UTF-16', (M + mcp).encode('utf-16'), None), ('UTF-16, said so', (M + mcp).encode('utf-16-le'), 'application/json; charset=utf-16le'), ('a byte order mark', b'\xef\xbb\xbf' + (M + mcp).encode(), None), ('a comment', M + '/*' + mcp[:-1] + '*/' + mcp, None), ('single quotes', (M + mcp).replace('"', "'"), None), ('a long s', M + mcp.replace('servers', '\u017fervers'), None), ('another type', M + mcp, 'text/plain'), ('a form', 'x=' + urllib.parse.quote(M + mcp), 'application/x-www-form-urlencoded'), ('a list', '[' + M + mcp + ']', None), ('lines', M + '}\n' + M + mcp + '\n', 'application/x-ndjson'), ('an image by address', M.replace('"hi"', '[{"type":"image","source":{"type":"url","url":"https://THIEF.test"}}]') + '}', None), ('a trailing comma', M + mcp[:-1] + ',}', None)]:
    b = b if isinstance(b, bytes) else b.encode()
    for how in (h1, h2): case(Anthropic(), how, 'PXY-33', what, body=b, type=type or 'application/json')

# EXF-14: reports pass with the keys that the programs have built in, and no other.
def report(host, path, *head, **how): return h1(host, 'POST', path, [('Content-Type', 'application/json')] + list(head), b'[]')
dd, st, se = 'http-intake.logs.us5.datadoghq.com', 'ab.chatgpt.com', 'o33249.ingest.us.sentry.io'
sentry = '/api/4510195390611458/envelope/'
known = 'Sentry sentry_key=ae32ed50620d7a7792c1ce5df38b3e3e, sentry_version=7, sentry_client=x/1'
control('EXF-14', 'Datadog with the known key', lambda: report(dd, '/api/v2/logs', ('Dd-Api-Key', 'pubea5604404508cdd34afb69e6f42a05bc')))
control('EXF-14', 'Statsig with the known key', lambda: report(st, '/otlp/v1/metrics', ('Statsig-Api-Key', 'client-MkRuleRQBd6qakfnDYqJVR9JuXcY57Ljly3vi5JVUIO')))
control('EXF-14', 'Sentry with the known key', lambda: report(se, sentry, ('X-Sentry-Auth', known)))
for what, f in {'Datadog header': lambda: report(dd, '/api/v2/logs', ('Dd-Api-Key', 'pub' + T)), 'Datadog both': lambda: report(dd, '/api/v2/logs', ('Dd-Api-Key', 'pubea5604404508cdd34afb69e6f42a05bc'), ('Dd-Api-Key', T)), 'Datadog query': lambda: report(dd, '/api/v2/logs?dd-api-key=' + T), 'Datadog path': lambda: report(dd, '/v1/input/' + T), 'Statsig header': lambda: report(st, '/otlp/v1/metrics', ('Statsig-Api-Key', 'client-' + T)), 'Statsig query': lambda: report(st, '/otlp/v1/metrics?k=' + T), 'Sentry header': lambda: report(se, sentry, ('X-Sentry-Auth', known.replace('ae32ed50620d7a7792c1ce5df38b3e3e', T))), 'Sentry query': lambda: report(se, sentry + '?sentry_key=' + T), 'Sentry other project': lambda: report(se, '/api/666/envelope/?THIEF=1', ('X-Sentry-Auth', known)), 'Sentry other organisation': lambda: report('o666.ingest.us.sentry.io', sentry + '?THIEF=1', ('X-Sentry-Auth', known)), 'Sentry store': lambda: report(se, '/api/4510195390611458/store/?THIEF=1', ('X-Sentry-Auth', known))}.items(): attack('EXF-14', what, f)
