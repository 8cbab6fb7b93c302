# Every line printed is ID|what|verdict|detail. "reached" and "refused" are what
# the program met; whether it mattered is judged outside. "control" lines prove
# that the way there works at all.
import base64, ctypes, errno, json, os, resource, socket, ssl, stat, struct, sys

PROXY = 'HTTPS_PROXY' in os.environ
KEY = os.environ.get('ANTHROPIC_API_KEY', '')

def say(id, what, verdict, detail=''):
    print('%s|%s|%s|%s' % (id, what, verdict, str(detail).replace('\n', ' ')[:120]), flush=True)

def attack(id, what, f):
    try:
        r = f()
    except OSError as e:
        return say(id, what, 'refused', errno.errorcode.get(e.errno, e))
    except Exception as e:
        return say(id, what, 'refused', repr(e))
    say(id, what, 'refused' if r is False else 'reached', r)

def control(id, what, f):
    try:
        r = f()
        say(id, what, 'control', 'ok' if r is not False else 'FAILED')
    except Exception as e:
        say(id, what, 'control', 'FAILED ' + repr(e))

contexts = {} # loading the roots takes long

def connect(host, port=443, sni=None, tls=True, alpn='http/1.1'):
    if PROXY:
        s = socket.create_connection(('127.0.0.1', 3128), 5)
        s.sendall(('CONNECT %s:%d HTTP/1.1\r\nHost: %s\r\n\r\n' % (host, port, host)).encode())
        r = b''
        while b'\r\n\r\n' not in r:
            d = s.recv(1)
            if not d: break
            r += d
        if b' 200' not in r.split(b'\r\n')[0]: raise ConnectionRefusedError(errno.ECONNREFUSED, 'relay')
    else:
        s = socket.create_connection((host, port), 5)
    s.settimeout(3)
    if not tls: return s
    if alpn not in contexts:
        contexts[alpn] = c = ssl.create_default_context(cafile=os.environ['SSL_CERT_FILE'])
        c.check_hostname = False
        c.set_alpn_protocols([alpn])
    return contexts[alpn].wrap_socket(s, server_hostname=sni or host)

def status(data, host='docs.example.com', **how):
    """Sends raw bytes; False unless a 2xx came back first."""
    s = connect(host, **how)
    s.sendall(data if isinstance(data, bytes) else data.encode('latin1'))
    out = b''
    try:
        while len(out) < 4096:
            d = s.recv(4096)
            if not d: break
            out += d
    except OSError: pass
    s.close()
    return out.split(b'\r\n')[0].decode() if out.startswith(b'HTTP/1.1 2') else False
