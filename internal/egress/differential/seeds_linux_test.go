package differential

import (
	"fmt"
	"strings"
)

// what stands in front of the one Host.
func get(target string) string { return "GET " + target + " HTTP/1.1\r\nHost: up.test\r\n" }

func post(target string) string { return "POST " + target + " HTTP/1.1\r\nHost: up.test\r\n" }

const sentinel = "GET /secret HTTP/1.1\r\nHost: up.test\r\n\r\n"

// paths that two servers could read in two ways, and ordinary ones.
var paths = []string{
	"/docs/a", "/docs/a/b/", "/docs/", "/docs", "/docs/a%20b", "/docs/a+b%2b", "/docs/caf%C3%A9", "/docs/a:b@c,d=e&f$!*()'~", "/docs/x.y..z", "/docs/a?b=c&d=%20&e", "/docs/a?b=c?d/../e", "/docs/a??x", "/docs/a?", "/docs/%41%6c%6C", "/docs/.well-known", "/docs/..a", "/docs/a..",
	"/docs/../secret", "/docs/%2e%2e/secret", "/docs/%2E./secret", "/docs/.%2e/secret", "/docs/..%2fsecret", "/docs/..%2Fsecret", "/docs/..%5csecret", "/docs\\..\\secret", "/docs/%5c..%5csecret", "/docs//secret", "//docs/a", "//up.test/docs/a", "/docs/./a", "/docs/a/.", "/docs/a/..", "/./docs/a", "/docs/%2e/a",
	"/docs/a;x=../secret", "/docs/..;/secret", "/docs;x/a", "/docs/a;b", "/docs/a%3bb", "/docs/%252e%252e/secret", "/docs/%c0%ae%c0%ae/secret", "/docs/..%c0%afsecret", "/docs/%e0%80%ae%e0%80%ae/secret", "/docs/%uff0e%uff0e/secret", "/docs/%ff", "/docs/%ef%bc%8e%ef%bc%8e/secret",
	"/docs/a%00", "/docs/%00/../secret", "/docs/.%00./secret", "/docs/%", "/docs/%zz", "/docs/%2", "/docs/a%0d%0aX:y", "/docs/a%0aX:y", "/docs/\xff", "/docs/a|b", "/docs/a^b", "/docs/...", "/docs/.. /secret", "/docs/%2e%2e%20/secret", "/%2fdocs/x", "/docs/a%23b", "/docs/a#b", "/docs/a%3fb", "/docs/é", "/docs/\"a\"", "/docs/<a>", "/docs/{a}", "/docs/`a`", "/docs/a%7f", "/docs/%01", "/docs/a\tb", "/docs/%C2%A0", "/docs/%E2%80%AE", "/docs/%09", "/docs/%20", "/docs/%20%20/..",
	"/DOCS/a", "/docs%2fa", "/docs%2Fa", "/@docs%2fa", "/@scope%2fname", "/items/1", "/items/1/2", "/items/1%2f2", "/items/1%2F..%2F..%2Fsecret", "/items/", "/items/..", "/v1/messages", "/v1/messages/", "/v1//messages", "/v1/messages/batches", "/v1/messages?_method=DELETE", "/v1/messages%3fx",
	"/projects/acme%2Fwidgets", "/projects/acme%2fwidgets/issues", "/projects/acme%2Fwidgets/issues?page=2&state=open", "/projects/acme%2Fother", "/projects/acme/widgets", "/projects/acme%252Fwidgets", "/projects/acme%2Fwidgets%2F..%2Fother", "/projects/acme%2F%2Fwidgets", "/projects/acme%2F.%2Fwidgets", "/projects/acme%2Fwidgets/../other", "/projects/%61cme%2Fwidgets", "/projects/acme%5Cwidgets", "/projects/acme%2Fwidgets%2Fissues", "/projects/acme%2Fwidgets/issues?x=1", "/tree/acme/widgets/list", "/tree/acme/widgets/../other/list", "/tree/acme%2Fwidgets/list",
	"http://up.test/docs/a", "http://up.test:80/docs/a", "HTTP://UP.test/docs/a", "http://up.test", "http://up.test?x=/docs/a", "http://evil.test/docs/a", "https://up.test/docs/a", "http://u@up.test/docs/a", "http://up.test#/docs/a", "up.test/docs/a", "*", "/docs/a?x=%00", "/docs/a?x=%zz", "/docs/a?x=1;y=2", "/docs/a?x=\xff", "/docs/a?x=%ff&%fe=1", "/docs/a?&&=&a&a=&=b", "/docs/a?a=1&a=2&A=3", "/docs/a?q=a+b%2Bc", "/docs/a?x=#y", "/docs/a?x=é", "/docs/a?x=%0d%0aHost:%20evil", "/docs/a?x[]=1&x[a]=2",
}

// heads are header lines, and what follows them, behind an allowed request line
// and Host.
var heads = []string{
	"\r\n", "Accept: */*\r\nUser-Agent: x\r\n\r\n", "User-Agent: \r\n\r\n", "Cookie: a=b; c=d\r\nCookie: e=f\r\n\r\n", "X-A: 1\r\nX-A: 2\r\nx-a: 3\r\n\r\n", "X-Empty:\r\nX-Tab:\ta\tb\t\r\n\r\n", "X-Latin: \xe9\xff\r\n\r\n", "X-UTF8: é\r\n\r\n", "X!#$%&'*+.^`|~9: tokens\r\n\r\n",
	"Content-Length: 43\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "Transfer-Encoding: chunked\r\nContent-Length: 43\r\n\r\n0\r\n\r\n", "Content-Length: 0\r\nContent-Length: 43\r\n\r\n", "Content-Length: 43\r\nContent-Length: 43\r\n\r\n",
	"Content-Length: +0\r\n\r\n", "Content-Length: -1\r\n\r\n", "Content-Length: 0,0\r\n\r\n", "Content-Length: 0x0\r\n\r\n", "Content-Length: 0 0\r\n\r\n", "Content-Length: 00\r\n\r\n", "Content-Length: 0043\r\n\r\n", "Content-Length:\r\n\r\n", "Content-Length: 99999999999999999999\r\n\r\n", "Content-Length : 0\r\n\r\n", "Content_Length: 43\r\n\r\n", "Content-Length: 43\r\n\r\n", "Content-Length: 0\r\n\r\n", "Content-Length: 2_0\r\n\r\n", "Content-Length: \t0\t\r\n\r\n",
	"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", "Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n", "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "Transfer-Encoding: identity\r\n\r\n", "Transfer-Encoding:\r\n\r\n", "Transfer-Encoding: CHUNKED\r\n\r\n0\r\n\r\n", "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", "Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
	"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n", "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", " Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "Transfer_Encoding: chunked\r\n\r\n0\r\n\r\n", "Transfer-Encoding: chunked\x00\r\n\r\n0\r\n\r\n", "Transfer-Encoding\x00: chunked\r\n\r\n0\r\n\r\n", "Transfer\xad-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"Transfer-Encoding: chunked\r\n\r\n0;ext=\"a\nb\"\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n0;ext\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n0\n\n", "Transfer-Encoding: chunked\r\n\r\n0\r\n\n", "Transfer-Encoding: chunked\r\n\r\n0\n\r\n", "Transfer-Encoding: chunked\r\n\r\n00000000000000000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n00000000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n 0\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n0 \r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\nA\r\n0123456789\r\n2\r\nab\r\n0\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n5\r\nhell", "Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n5\rXhello\r\n0\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello0\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\nffffffff\r\nabc",
	"X: y\rContent-Length: 0\r\n\r\n", "X: a\r\n b\r\n\r\n", "X: a\r\n\tb\r\n\r\n", "X: \x00\r\n\r\n", "\x00X: y\r\n\r\n", "X y: z\r\n\r\n", ": z\r\n\r\n", "X\r\n\r\n", "X: y\nTransfer-Encoding: chunked\r\n\r\n", "X: y\n\r\n", "\n", "X: a\x0bb\r\n\r\n", "X: a\x7fb\r\n\r\n", "X(: y\r\n\r\n", "X: y\r\r\n\r\n", "X:y\r\n \r\n\r\n",
	"Host: up.test\r\n\r\n", "Host: evil.test\r\n\r\n", "host : evil.test\r\n\r\n", "Connection: close\r\n\r\n", "Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n\r\n", "Trailer: X\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n",
	"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n", "Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n\r\n", "Connection: Authorization\r\n\r\n", "Connection: close, x-api-key\r\n\r\n", "Connection: Host\r\n\r\n", "Connection: Content-Length\r\nContent-Length: 43\r\n\r\n",
	"X-HTTP-Method-Override: DELETE\r\n\r\n", "X-Method-Override: DELETE\r\n\r\n", "X-Original-URL: /secret\r\n\r\n", "X-Rewrite-URL: /secret\r\n\r\n", "X-Forwarded-Host: evil.test\r\nX-Forwarded-For: 1.2.3.4\r\nForwarded: host=evil\r\n\r\n", "X_Api_Key: 1\r\n\r\n", "Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello", "Expect: 417-please\r\n\r\n", "Expect: 100-continue\r\n\r\n", "TE: trailers\r\n\r\n", "TE: gzip\r\n\r\n", "Proxy-Authorization: Basic eDp5\r\nProxy-Connection: keep-alive\r\n\r\n", "Range: bytes=0-1\r\nIf-Range: x\r\n\r\n", "Accept-Encoding: gzip\r\nAccept-Encoding: br\r\n\r\n", "Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", "Content-Type: application/json\r\nContent-Length: 14\r\n\r\n{\"title\":\"hi\"}", "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\ne\r\n{\"title\":\"hi\"}\r\n0\r\n\r\n", "Content-Type: application/json\r\nContent-Length: 29\r\n\r\n{\"title\":\"hi\",\"title\":\"other\"}", "Priority: u=1\r\nHTTP2-Settings: x\r\n\r\n", "Via: 1.1 x\r\nMax-Forwards: 0\r\n\r\n",
}

// lines are whole request lines with Host.
var lines = []string{
	"HEAD /docs/a HTTP/1.1\r\nHost: up.test\r\n", "OPTIONS /docs/a HTTP/1.1\r\nHost: up.test\r\n", "DELETE /items/1 HTTP/1.1\r\nHost: up.test\r\n", "PUT /items/1 HTTP/1.1\r\nHost: up.test\r\nContent-Length: 2\r\n", "TRACE /docs/a HTTP/1.1\r\nHost: up.test\r\n", "TRACK /docs/a HTTP/1.1\r\nHost: up.test\r\n", "get /docs/a HTTP/1.1\r\nHost: up.test\r\n", "DEBUG /docs/a HTTP/1.1\r\nHost: up.test\r\n", "CONNECT /docs/a HTTP/1.1\r\nHost: up.test\r\n", "CONNECT up.test:80 HTTP/1.1\r\nHost: up.test:80\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n", "OPTIONS * HTTP/1.1\r\nHost: up.test\r\n", "GET_X /docs/a HTTP/1.1\r\nHost: up.test\r\n",
	"GET /docs/a HTTP/1.0\r\nHost: up.test\r\n", "GET /docs/a HTTP/1.0\r\nHost: up.test\r\nConnection: keep-alive\r\n", "POST /items/1 HTTP/1.0\r\nHost: up.test\r\nContent-Length: 2\r\n", "GET /docs/a HTTP/1.0\r\n", "GET /docs/a HTTP/0.9\r\nHost: up.test\r\n", "GET /docs/a HTTP/1.2\r\nHost: up.test\r\n", "GET /docs/a HTTP/2.0\r\nHost: up.test\r\n", "GET /docs/a http/1.1\r\nHost: up.test\r\n", "GET /docs/a HTTP/1.1 \r\nHost: up.test\r\n", "GET /docs/a HTTP/01.1\r\nHost: up.test\r\n", "GET /docs/a\r\nHost: up.test\r\n", "GET /docs/a\r\n", "GET  /docs/a HTTP/1.1\r\nHost: up.test\r\n", "GET /docs/a  HTTP/1.1\r\nHost: up.test\r\n", "GET\t/docs/a\tHTTP/1.1\r\nHost: up.test\r\n", " GET /docs/a HTTP/1.1\r\nHost: up.test\r\n", "\r\nGET /docs/a HTTP/1.1\r\nHost: up.test\r\n", "GET /docs/a HTTP/1.1\nHost: up.test\n", "GET /docs/a HTTP/1.1\r\n Host: up.test\r\n", "GET /docs/a x HTTP/1.1\r\nHost: up.test\r\n", "GET /docs/a HTTP/1.1\x00\r\nHost: up.test\r\n",
	"GET /docs/a HTTP/1.1\r\n", "GET /docs/a HTTP/1.1\r\nHost:\r\n", "GET /docs/a HTTP/1.1\r\nHost: evil.test\r\n", "GET /docs/a HTTP/1.1\r\nHost: up.test:81\r\n", "GET /docs/a HTTP/1.1\r\nHost: UP.test.\r\n", "GET /docs/a HTTP/1.1\r\nHost: up.test:80\r\n", "GET /docs/a HTTP/1.1\r\nHost: up.test@evil.test\r\n", "GET /docs/a HTTP/1.1\r\nHost: evil.test#@up.test\r\n", "GET /docs/a HTTP/1.1\r\nHost: up.test/docs\r\n", "GET /docs/a HTTP/1.1\r\nHost: up.test, evil.test\r\n", "GET /docs/a HTTP/1.1\r\nHost: 127.0.0.1\r\n", "GET /docs/a HTTP/1.1\r\nHost: up\u3002test\r\n", "GET http://up.test/docs/a HTTP/1.1\r\nHost: evil.test\r\n",
}

// seeds1 are the parser differentials of attacks, each followed by a request
// that no grant covers, and by one that a grant covers.
func seeds1() (out []string) {
	for _, p := range paths {
		out = append(out, get(p)+"\r\n"+sentinel)
	}
	for _, p := range paths[:12] {
		out = append(out, post(p)+"Content-Length: 2\r\n\r\nhi"+get("/docs/next")+"\r\n")
	}
	for i, h := range heads {
		line := []string{get("/docs/a"), post("/items/1"), post("/v1/messages"), post("/projects/acme%2Fwidgets/issues")}
		out = append(out, line[0]+h+sentinel, line[1]+h+sentinel, line[1+i%3]+h+get("/docs/next")+"\r\n")
	}
	for _, l := range lines {
		out = append(out, l+"\r\n"+sentinel, l+"\r\n"+get("/docs/next")+"\r\n")
	}
	var b strings.Builder
	for i := range 10 {
		fmt.Fprintf(&b, "%s\r\n", get(fmt.Sprintf("/docs/%d", i)))
	}
	for _, body := range []int{0, 1, len(sentinel), len(sentinel) - 1, len(sentinel) + 1} {
		out = append(out, fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s%s\r\n", post("/items/1"), body, sentinel, get("/docs/next")))
	}
	big := strings.Repeat("x", 20000)
	return append(out, b.String()+post("/docs/no")+"Content-Length: 2\r\n\r\nxx"+get("/docs/after")+"\r\n",
		fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s%s\r\n", post("/items/1"), len(big), big, get("/docs/next")),
		fmt.Sprintf("%sTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n%s\r\n", post("/items/1"), len(big), big, get("/docs/next")),
		get("/docs/a")+"X: "+big+"\r\n\r\n"+sentinel)
}

// ordinary1 are requests that pass, two on each connection.
func ordinary1() (out []string) {
	next := get("/docs/next?a=b&c=%20d") + "Accept: */*\r\nX-A: 1\r\n\r\n"
	for _, first := range []string{
		get("/docs/a/b") + "\r\n", get("/docs/caf%C3%A9%20x?q=1+2&r") + "Cookie: a=b; c=d\r\nX-B: c d\r\n\r\n", "HEAD /docs/a HTTP/1.1\r\nHost: up.test\r\n\r\n", "DELETE /items/1 HTTP/1.1\r\nHost: up.test\r\n\r\n",
		post("/items/1") + "Content-Length: 43\r\n\r\n" + sentinel, post("/v1/messages") + "Transfer-Encoding: chunked\r\n\r\n2b\r\n" + sentinel + "\r\n0\r\n\r\n", "PUT /items/x HTTP/1.1\r\nHost: up.test\r\nContent-Length: 5\r\nContent-Type: text/plain\r\n\r\nhello",
		get("/projects/acme%2Fwidgets/issues?page=2") + "\r\n", post("/projects/acme%2Fwidgets/issues") + "Content-Type: application/json\r\nContent-Length: 14\r\n\r\n{\"title\":\"hi\"}", get("/tree/acme/widgets/list") + "X-Dropped: 1\r\nAccept: a/b\r\n\r\n",
		get("http://up.test/docs/a") + "\r\n", post("/items/1") + "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n",
	} {
		out = append(out, first+next, next+first)
	}
	return out
}

// tokens1 are what a walk puts in.
var tokens1 = []string{
	"\r\n", "\n", "\r", " ", "\t", "\x00", "\x0b", "\x0c", "\x7f", "\x85", "\xa0", "\xff", ":", ",", ";", "%", "%2f", "%2F", "%5c", "%2e", "%2e%2e/", "../", "./", "/", "//", "/..", "..;/", "%00", "%0d%0a", "%25", "%252f", "%c0%af", "%3f", "%23", "?", "#", "&", "=", "+", "@", "\\", "|", "\"",
	"0\r\n\r\n", "5\r\nhello\r\n", "0", "1", "a", "A", "-", "_", "GET ", "POST ", "HEAD ", " HTTP/1.1", " HTTP/1.0", "HTTP/1.1\r\n", "Host: up.test\r\n", "Host: evil.test\r\n", "Content-Length: 0\r\n", "Content-Length: 5\r\n", "Content-Length: 43\r\n", "content-length: 5\r\n", "Transfer-Encoding: chunked\r\n", "transfer-encoding: chunked\r\n", "Transfer-Encoding: identity\r\n", "Connection: close\r\n", "Connection: keep-alive\r\n", "Connection: upgrade\r\n", "Upgrade: h2c\r\n", "Expect: 100-continue\r\n", "Trailer: X\r\n", "TE: trailers\r\n", "X-A: b\r\n", "Cookie: a=b\r\n", " folded\r\n", "http://up.test", "/secret", "/docs/", "/items/1", "acme%2Fwidgets", sentinel,
}
