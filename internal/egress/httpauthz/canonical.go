package httpauthz

import (
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"net/url"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/egress/framing"
	"github.com/bulkhead-dev/bulkhead/internal/egress/websocket"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/switches"
)

// canonical is a request in the one form that is judged and forwarded.
type canonical struct {
	catalog.Request
	rawPath  string // as it came and as it is forwarded; decodes to Path
	rawQuery string
	header   http.Header // end-to-end headers only
	ws       *websocket.Handshake
}

// refusal says why a request has no canonical form.
type refusal struct{ code, message string }

func (r *refusal) Error() string { return r.message }

func bad(format string, args ...any) error {
	return &refusal{CodeBadRequest, fmt.Sprintf(format, args...)}
}

const maxQuery = 16 << 10

// methods that have one meaning everywhere. TRACE would echo credentials,
// CONNECT opens tunnels, and unknown ones mean what the upstream thinks.
var methods = map[string]bool{
	"GET": true, "HEAD": true, "POST": true, "PUT": true, "PATCH": true, "DELETE": true, "OPTIONS": true,
	"PROPFIND": true, "REPORT": true,
}

// overriding headers make an upstream see another method, path or host than
// the one judged.
var overriding = []string{
	"X-Http-Method-Override", "X-Http-Method", "X-Method-Override", "X-Original-Method",
	"X-Original-Url", "X-Rewrite-Url", "X-Original-Uri", "X-Original-Host", "X-Host", "X-Forwarded-Uri", "X-Override-Url",
	"X-Envoy-Original-Path", "X-Accel-Redirect", "X-Sendfile",
	"X-Http-Host-Override", "X-Forwarded-Method", "X-Forwarded-Path", "X-Forwarded-Url", "X-Request-Uri", "X-Proxy-Url", "X-Original-Path", "X-Rewrite-Path", "X-Rewrite-Uri", "X-Waws-Unencoded-Url",
}

// hopByHop headers end here (RFC 9110 section 7.6.1), and those by which a
// client speaks about hops that do not exist.
var hopByHop = []string{
	"Connection", "Proxy-Connection", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings", "Expect",
	"Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Forwarded-Server",
	"X-Forwarded-Prefix", "X-Forwarded-Scheme", "X-Forwarded-Ssl", "X-Real-Ip", "X-Client-Ip", "True-Client-Ip", "Content-Length", "Host",
	"Alt-Used",
}

// canonicaliseFor is canonicalise, except that an escaped slash may stand in a
// path where a granted service wants it. Path has it as "%2F" then.
func canonicaliseFor(r *http.Request, dst hostport.HostPort, secure bool, d Decider) (*canonical, error) {
	target, _, _ := strings.Cut(r.RequestURI, "?")
	if !strings.Contains(strings.ToUpper(target), "%2F") {
		return canonicalise(r, dst, secure)
	}
	c, err := canonicalForm(r, dst, secure, true)
	if err == nil && strings.Contains(c.Path, "%2F") && !d.EscapedSlash(c.Request) {
		return nil, bad("the path has an escaped slash (%%2F)")
	}
	return c, err
}

// canonicalise judges form only. dst and secure are what the connection is
// bound to.
func canonicalise(r *http.Request, dst hostport.HostPort, secure bool) (*canonical, error) {
	return canonicalForm(r, dst, secure, false)
}

func canonicalForm(r *http.Request, dst hostport.HostPort, secure, slashes bool) (*canonical, error) {
	if !methods[r.Method] {
		return nil, bad("the method %q is never forwarded", clip(r.Method))
	}
	if r.ProtoMajor == 1 && r.ProtoMinor == 0 && r.ContentLength != 0 {
		return nil, bad("a body in HTTP/1.0, whose length two servers may read in two ways")
	}
	c := &canonical{Request: catalog.Request{Scheme: "http", Host: dst.Host, Port: dst.Port, Method: r.Method}}
	if secure {
		c.Scheme = "https"
	}
	target, err := originForm(r, c.Scheme, dst)
	if err != nil {
		return nil, err
	}
	if err := sameAuthority(r.Host, c.Scheme, dst); err != nil {
		return nil, err
	}
	path, query, hasQuery := strings.Cut(target, "?")
	if c.Path, err = decodePath(path, slashes); err != nil {
		return nil, err
	}
	c.rawPath = path
	if hasQuery {
		if c.Query, err = decodeQuery(query); err != nil {
			return nil, err
		}
		c.rawQuery = query
	}
	if c.Query == nil {
		c.Query = url.Values{}
	}
	if c.header, err = endToEnd(r); err != nil {
		return nil, err
	}
	if websocket.Asked(r.Header) {
		if c.ws, err = websocket.Read(r, c.header); err != nil {
			return nil, &refusal{CodeProtocolRefused, err.Error()}
		}
		c.Method = catalog.MethodWebSocket
		if len(c.ws.Protocols) > 0 {
			c.header["Sec-Websocket-Protocol"] = []string{strings.Join(c.ws.Protocols, ", ")} // to be judged
		}
	}
	c.Header = c.header
	return c, nil
}

// originForm returns path and query as they came on the request line. An
// absolute form must name the bound destination.
func originForm(r *http.Request, scheme string, dst hostport.HostPort) (string, error) {
	target := r.RequestURI
	if strings.HasPrefix(target, "/") {
		return target, nil
	}
	if r.ProtoMajor != 1 {
		return "", bad("the request target %q is not a path", clip(target))
	}
	rest, ok := cutPrefixFold(target, scheme+"://")
	if !ok {
		return "", bad("the request target %q is not a path of %s://%s", clip(target), scheme, dst)
	}
	slash := strings.IndexAny(rest, "/?#")
	if slash < 0 {
		slash = len(rest)
	}
	if err := sameAuthority(rest[:slash], scheme, dst); err != nil {
		return "", err
	}
	rest = rest[slash:]
	if rest == "" || rest[0] != '/' {
		rest = "/" + rest
	}
	return rest, nil
}

func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return s, false
	}
	return s[len(prefix):], true
}

// sameAuthority compares Host or :authority with what DNS and SNI were bound to.
func sameAuthority(authority, scheme string, dst hostport.HostPort) error {
	port := hostport.Port(80)
	if scheme == "https" {
		port = 443
	}
	name := authority
	if i := strings.LastIndexByte(authority, ':'); i >= 0 {
		p, err := hostport.ParsePort(authority[i+1:])
		if err != nil {
			return bad("the Host header %q is not host[:port]", clip(authority))
		}
		name, port = authority[:i], p
	}
	if dst.Host.String() == "localhost" && (name == "127.0.0.1" || name == "[::1]") {
		name = "localhost" // who came by the address of the loopback says so
	}
	h, err := hostport.ParseHost(name)
	if errors.Is(err, hostport.ErrIPLiteral) {
		return &refusal{CodeIPLiteral, fmt.Sprintf("the Host header names the address %q; only names are granted", clip(authority))}
	}
	if err != nil {
		return bad("the Host header %q is not host[:port]", clip(authority))
	}
	if (h != dst.Host || port != dst.Port) && !switches.Off("authority") {
		return &refusal{CodeNameMismatch, fmt.Sprintf("the connection was opened to %s and the request is for %s:%d", dst, h, port)}
	}
	return nil
}

// decodePath decodes once and refuses whatever two parsers could read in two
// ways.
func decodePath(raw string, slashes bool) (string, error) {
	if len(raw) > catalog.MaxPath {
		return "", bad("the path is longer than %d bytes", catalog.MaxPath)
	}
	var b strings.Builder
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		switch {
		case c == '%':
			if i+2 >= len(raw) || !isHex(raw[i+1]) || !isHex(raw[i+2]) {
				return "", bad("the path has a broken percent escape")
			}
			d := unhex(raw[i+1])<<4 | unhex(raw[i+2])
			switch d {
			case '/':
				if scopedName(raw, i) {
					break
				}
				if !slashes {
					return "", bad("the path has an escaped slash (%%2F)")
				}
				b.WriteString("%2F")
				i += 2
				continue
			case '\\', ';', '?', '#', '%':
				return "", bad("the path has an escaped %q", string(d))
			}
			b.WriteByte(d)
			i += 2
		case c <= ' ' || c >= 0x7f || strings.IndexByte("\\;#\"<>^`{|}", c) >= 0:
			return "", bad("the path has the character %q, which has to be escaped or is ambiguous", string(rune(c)))
		default:
			b.WriteByte(c)
		}
	}
	path := b.String()
	whole := strings.ReplaceAll(path, "%2F", "/")
	if err := catalog.CheckPath(whole); err != nil {
		return "", bad("the path is ambiguous: %v", err)
	}
	for _, seg := range strings.Split(whole, "/") {
		if seg != "" && strings.Trim(seg, ". ") == "" {
			return "", bad("the path has a segment of dots")
		}
	}
	return path, nil
}

// scopedName allows the one escaped slash that is customary: npm asks for
// /@scope%2Fname. Both readings lead to the same path.
func scopedName(raw string, i int) bool {
	if !strings.HasPrefix(raw, "/@") {
		return false
	}
	scope := raw[2:i]
	next := i + 3
	return scope != "" && strings.Trim(scope, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_~.") == "" && strings.Trim(scope, ".") != "" &&
		next < len(raw) && raw[next] != '/' && raw[next] != '.' && raw[next] != '%'
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func unhex(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c <= 'F':
		return c - 'A' + 10
	}
	return c - 'a' + 10
}

func decodeQuery(raw string) (url.Values, error) {
	if len(raw) > maxQuery {
		return nil, bad("the query is longer than %d bytes", maxQuery)
	}
	for i := 0; i < len(raw); i++ {
		if c := raw[i]; c <= ' ' || c >= 0x7f || c == '#' {
			return nil, bad("the query has the character %q, which has to be escaped", string(rune(c)))
		}
	}
	v, err := url.ParseQuery(raw)
	if err != nil {
		return nil, bad("the query is ambiguous: %v", err)
	}
	for key := range v {
		if overridesMethod(key) {
			return nil, bad("the query overrides the method (%s)", clip(key))
		}
	}
	return v, nil
}

// endToEnd returns the headers that are judged and forwarded.
func endToEnd(r *http.Request) (http.Header, error) {
	if len(r.Trailer) > 0 || len(r.Header["Trailer"]) > 0 {
		return nil, bad("request trailers are never forwarded")
	}
	// net/http lets these pass in HTTP/2, and takes what is no number for 0.
	switch lengths := r.Header["Content-Length"]; {
	case len(lengths) > 1:
		return nil, bad("more than one Content-Length")
	case len(lengths) == 1:
		if _, err := framing.ParseLength(lengths[0]); err != nil {
			return nil, bad("%v", err)
		}
	}
	if _, ok := r.Header["Host"]; ok {
		return nil, bad("the request names its host twice")
	}
	for _, line := range r.Header["Connection"] {
		for token := range strings.SplitSeq(line, ",") {
			switch t := strings.ToLower(textproto.TrimString(token)); t {
			case "", "close", "keep-alive", "te", "upgrade", "http2-settings":
			default:
				return nil, bad("the Connection header nominates %q", clip(t))
			}
		}
	}
	for _, proto := range r.Header["Upgrade"] {
		// h2c is an offer that may be ignored, and is; anything else expects a
		// stream that nobody could judge.
		if name := textproto.TrimString(proto); !strings.EqualFold(name, "h2c") && !websocket.Asked(r.Header) {
			return nil, &refusal{CodeProtocolRefused, fmt.Sprintf("an upgrade to %q is not granted", clip(proto))}
		}
	}
	for _, name := range overriding {
		if _, ok := r.Header[name]; ok {
			return nil, bad("the header %s would override what was judged", name)
		}
	}
	for name := range r.Header {
		if strings.ContainsRune(name, '_') {
			return nil, bad("the header %q has an underscore, which some servers read as a hyphen", clip(name))
		}
	}
	h := r.Header.Clone()
	for _, name := range hopByHop {
		delete(h, name)
	}
	for _, values := range h {
		for i, v := range values {
			// HTTP/2 lets blanks stand around a value, which some servers leave out
			// with all the header; in HTTP/1 they are gone already.
			values[i] = textproto.TrimString(v)
		}
	}
	// A gRPC client says by this that it reads the trailers of the answer.
	for _, te := range r.Header["Te"] {
		if strings.EqualFold(textproto.TrimString(te), "trailers") {
			h["Te"] = []string{"trailers"}
		}
	}
	return h, nil
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

// shownPath is the path for the record, which is no place for somebody's key.
func (c *canonical) shownPath() string {
	if catalog.LooksLikeCredential(c.rawPath) || catalog.LooksLikeCredential(c.Path) {
		return "/"
	}
	return c.rawPath
}
