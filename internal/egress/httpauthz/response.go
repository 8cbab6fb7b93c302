package httpauthz

import (
	"net/http"
	"net/textproto"
	"strings"
)

// Headers of answers that never pass. What a server may not do through its
// answers: lead the client to other places or ports, make it report elsewhere,
// speak for a proxy or for us, give it a cookie (a request with one is refused, as
// it would be another identity's).
var (
	steering = []string{
		"Alt-Svc", "Refresh", "Clear-Site-Data", "Nel", "Report-To", "Reporting-Endpoints", "Expect-Ct", "Public-Key-Pins", "Public-Key-Pins-Report-Only",
		"Speculation-Rules", "Service-Worker-Allowed", "Proxy-Authenticate", "Proxy-Authentication-Info", "Proxy-Connection", "Proxy-Status",
		DeniedHeader, "Keep-Alive", "Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings",
		"X-Accel-Redirect", "X-Sendfile", "Set-Cookie", "Set-Cookie2",
	}
	// minted would hand the sandbox something that stands for the real identity:
	// removed from answers to requests under a swapped credential.
	minted = []string{
		"Authentication-Info", "Authorization", "Set-Authorization", "X-Set-Authorization", "X-Authorization",
		"X-Amz-Security-Token", "X-Auth-Token", "X-Subject-Token", "X-Access-Token", "X-Refresh-Token", "X-Session-Token", "X-Session-Id", "X-Id-Token",
		"X-Api-Key", "Api-Key", "X-Token", "Access-Token", "Refresh-Token", "Id-Token", "X-Csrf-Token", "X-Xsrf-Token", "X-Vault-Token", "X-Goog-Iap-Jwt-Assertion",
		"X-Ms-Token-Aad-Access-Token", "X-Ms-Token-Aad-Id-Token", "X-Ms-Token-Aad-Refresh-Token", "Npm-Session", "Token", "Jwt", "X-Jwt", "X-Jwt-Token", "X-Xet-Access-Token",
	}
	// linked are the relations by which a Link header makes a client open
	// connections by itself; others (next, last) are what clients page by.
	linked = []string{"preconnect", "dns-prefetch", "prefetch", "preload", "modulepreload", "prerender", "serviceworker"}
)

// cleanse removes from an answer's headers or trailers what must not reach the
// sandbox. Every removal goes by the rule alone: no request asks for one of these.
func cleanse(h http.Header, swapped bool) {
	for _, line := range h["Connection"] {
		for token := range strings.SplitSeq(line, ",") {
			h.Del(textproto.TrimString(token))
		}
	}
	for _, name := range steering {
		delete(h, name)
	}
	if links, ok := h["Link"]; ok {
		if kept := withoutSteering(links); len(kept) > 0 {
			h["Link"] = kept
		} else {
			delete(h, "Link")
		}
	}
	// These bind a connection to an identity, and connections are shared.
	keep(h, "Www-Authenticate", func(v string) bool {
		scheme, _, _ := strings.Cut(strings.TrimSpace(v), " ")
		return !strings.EqualFold(scheme, "Negotiate") && !strings.EqualFold(scheme, "NTLM") && !strings.EqualFold(scheme, "Kerberos")
	})
	if swapped {
		for _, name := range minted {
			delete(h, name)
		}
	}
}

func keep(h http.Header, name string, want func(string) bool) {
	values, ok := h[name]
	if !ok {
		return
	}
	kept := values[:0]
	for _, v := range values {
		if want(v) {
			kept = append(kept, v)
		}
	}
	if h[name] = kept; len(kept) == 0 {
		delete(h, name)
	}
}

// withoutSteering returns the links without those that open connections.
func withoutSteering(lines []string) []string {
	var kept []string
	for _, line := range lines {
		for _, link := range splitLinks(line) {
			if !opensConnections(link) {
				kept = append(kept, link)
			}
		}
	}
	if len(kept) == 0 {
		return nil
	}
	return []string{strings.Join(kept, ", ")}
}

// splitLinks cuts at the commas that are neither in <> nor in quotes.
func splitLinks(s string) []string {
	var out []string
	start, angle, quoted := 0, false, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quoted && c == '\\':
			i++
		case c == '"' && !angle:
			quoted = !quoted
		case c == '<' && !quoted:
			angle = true
		case c == '>' && !quoted:
			angle = false
		case c == ',' && !angle && !quoted:
			out = append(out, strings.TrimSpace(s[start:i]))
			start = i + 1
		}
	}
	return append(out, strings.TrimSpace(s[start:]))
}

// opensConnections errs on the side of removing: the word anywhere behind the
// target counts.
func opensConnections(link string) bool {
	_, params, ok := strings.Cut(link, ">")
	if !ok {
		return true
	}
	params = strings.ToLower(params)
	for _, rel := range linked {
		if strings.Contains(params, rel) {
			return true
		}
	}
	return false
}
