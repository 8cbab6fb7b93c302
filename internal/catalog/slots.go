package catalog

import (
	"encoding/base64"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/secret"
)

// Slot is a place of a request where a credential may stand. The zero Slot is
// the path.
type Slot struct {
	// Header is a canonical header name; Scheme, with Authorization, is
	// "Bearer", "Basic" or another scheme as net/http would write it.
	Header string `json:"header,omitempty"`
	Scheme string `json:"scheme,omitempty"`
	// Query is a key of the query.
	Query string `json:"query,omitempty"`
	// Prefix stands in front of the credential in one of the names that a
	// WebSocket handshake offers.
	Prefix string `json:"prefix,omitempty"`
	// User is the user name that goes with it (Basic), whatever the client wrote.
	User string `json:"user,omitempty"`
	// Body is a field of the body, for messages: bodies are never changed.
	Body string `json:"body,omitempty"`
}

// Place is the slot without what only says how it is filled.
func (s Slot) Place() Slot {
	s.User = ""
	return s
}

// String names the slot for a message; it never has a value in it.
func (s Slot) String() string {
	switch {
	case s.Body != "":
		return "the body field " + shown(s.Body, 60)
	case s.Prefix != "":
		return "the subprotocol " + shown(s.Prefix, 40) + "… of " + shown(s.Header, 40)
	case s.Query != "":
		return "the query parameter " + shown(s.Query, 40)
	case s.Header == "":
		return "the path"
	case s.Scheme != "":
		return "the header " + shown(s.Header, 40) + " (" + shown(s.Scheme, 20) + ")"
	}
	return "the header " + shown(s.Header, 40)
}

// shown is a name that a request chose, as it may stand in a line.
func shown(s string, n int) string {
	s = clip(s, n)
	if q := strconv.Quote(s); q[1:len(q)-1] != s {
		return q
	}
	return s
}

// Kind says why something counts as a credential.
type Kind uint8

// The kinds of findings. The zero Kind is the strictest.
const (
	// Named: the place is made for credentials.
	Named Kind = iota
	// Shaped: the value looks like a credential of a well-known make.
	Shaped
	// Signed: part of a signed URL (see Operation.SignedURLs).
	Signed
	// Placed: a body field where the session's placeholder may stand.
	Placed
)

// Found is one credential-shaped thing. Value can't be printed.
type Found struct {
	Slot  Slot
	Kind  Kind
	Value secret.Value
}

// Credentials lists every credential-shaped thing in the request's headers,
// query and path, including those in places that only this service knows.
func (s *Service) Credentials(r Request) []Found {
	if s.Credential == nil {
		return Credentials(r)
	}
	return CredentialsIn(r, s.Credential.Slots)
}

// Credentials is the part of the search that needs no service.
func Credentials(r Request) []Found { return CredentialsIn(r, nil) }

// CredentialsIn searches in the given slots as well, whatever their names.
func CredentialsIn(r Request, slots []Slot) []Found {
	var found []Found
	add := func(slot Slot, kind Kind, v string) {
		found = append(found, Found{slot, kind, secret.New([]byte(v))})
	}
	extraHeader := func(name string) (known, scheme bool) {
		for _, s := range slots {
			if s.Header == name {
				return true, s.Scheme != ""
			}
		}
		return false, false
	}
	for name, values := range r.Header {
		name = http.CanonicalHeaderKey(name)
		extra, scheme := extraHeader(name)
		for _, v := range values {
			switch {
			case name == subprotocolHeader:
				found = append(found, subprotocols(v, slots)...)
			case scheme || name == "Authorization" || name == "Proxy-Authorization":
				found = append(found, authorization(name, v))
			case name == "Cookie" && v == "":
				// Some clients send it with nothing in it.
			case extra || isSecretHeader(name):
				add(Slot{Header: name}, Named, v)
			case hasTokenShape(v):
				add(Slot{Header: name}, Shaped, v)
			}
		}
	}
	for key, values := range r.Query {
		for _, v := range values {
			switch {
			case isSignatureQuery(key):
				add(Slot{Query: key}, Signed, v)
			case isSecretQuery(key) || slices.ContainsFunc(slots, func(s Slot) bool { return s.Query == key && key != "" }):
				add(Slot{Query: key}, Named, v)
			case hasTokenShape(v) || hasTokenShape(key):
				add(Slot{Query: key}, Shaped, v)
			}
		}
	}
	if hasTokenShape(r.Path) {
		add(Slot{}, Shaped, r.Path)
	}
	slices.SortFunc(found, func(a, b Found) int {
		return strings.Compare(a.Slot.Header+"\x00"+a.Slot.Query+"\x00"+a.Slot.Scheme, b.Slot.Header+"\x00"+b.Slot.Query+"\x00"+b.Slot.Scheme)
	})
	return found
}

// authorization splits the header into scheme and value. Of Basic, the value is
// the password, or the user name if there is no password; and if the other of
// the two could hide a second credential, it is both.
func authorization(name, v string) Found {
	scheme, rest, ok := strings.Cut(v, " ")
	if !ok || scheme == "" || strings.Trim(scheme, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") != "" {
		return Found{Slot{Header: name}, Named, secret.New([]byte(v))}
	}
	slot := Slot{Header: name, Scheme: strings.ToUpper(scheme[:1]) + strings.ToLower(scheme[1:])}
	if slot.Scheme == "Basic" {
		if b, err := base64.StdEncoding.Strict().DecodeString(rest); err == nil {
			user, password, ok := strings.Cut(string(b), ":")
			switch {
			case ok && (password == "" || password == "x-oauth-basic"):
				return Found{slot, Named, secret.New([]byte(user))}
			case ok && isLogin(user):
				return Found{slot, Named, secret.New([]byte(password))}
			}
			return Found{slot, Named, secret.New(b)}
		}
	}
	return Found{slot, Named, secret.New([]byte(rest))}
}

const subprotocolHeader = "Sec-Websocket-Protocol"

// subprotocols looks at each name that a handshake offers: behind the prefix of
// a slot, named like a credential, or shaped like one.
func subprotocols(v string, slots []Slot) []Found {
	var found []Found
	for name := range strings.SplitSeq(v, ",") {
		name = strings.Trim(name, " \t")
		slot, kind, value := Slot{Header: subprotocolHeader}, Shaped, name
		if i := slices.IndexFunc(slots, func(s Slot) bool { return s.Prefix != "" && strings.HasPrefix(name, s.Prefix) }); i >= 0 {
			slot, kind, value = Slot{Header: subprotocolHeader, Prefix: slots[i].Prefix}, Named, name[len(slots[i].Prefix):]
		} else if named := isSecretSubprotocol(name); named {
			kind = Named
		} else if !hasTokenShape(name) {
			continue
		}
		found = append(found, Found{slot, kind, secret.New([]byte(value))})
	}
	return found
}

// isSecretSubprotocol knows the customs by which browsers, which can set no
// header, put credentials there: a word for one, or a name too long to be one.
func isSecretSubprotocol(name string) bool {
	folded := foldQuery(name)
	return len(name) > 80 || slices.ContainsFunc([]string{"apikey", "accesstoken", "authtoken", "bearer", "authorization", "password", "secret", "jwt"}, func(w string) bool {
		return strings.Contains(folded, w)
	})
}

// isLogin knows the names that people and clients sign in with: at most 39
// letters (GitHub's limit; an old token of GitHub's has 40), no token's shape.
func isLogin(s string) bool {
	return len(s) <= 39 && tokenRun(s) == len(s) && !hasTokenShape(s)
}

// secretHeaders are headers that carry credentials; names that end like one
// (secretEndings) count as well.
var secretHeaders = map[string]bool{
	"Authorization": true, "Proxy-Authorization": true, "Cookie": true, "Cookie2": true,
	"Authentication": true, "X-Authorization": true, "X-Api-Key": true, "X-Goog-Api-Key": true,
	"Api-Key": true, "Apikey": true, "Private-Token": true, "Job-Token": true, "Deploy-Token": true,
	"X-Goog-Iap-Jwt-Assertion": true, "X-Functions-Key": true, "Ocp-Apim-Subscription-Key": true,
	"X-Honeycomb-Team": true, "X-Sentry-Auth": true, "X-Auth-Key": true, "X-Access-Key": true,
	"Npm-Otp": true, "X-Github-Otp": true, "X-Auth-Email": true, "X-Sourcegraph-Request-Secret": true,
	"X-Session-Key": true, "X-Master-Key": true, "X-Parse-Rest-Api-Key": true,
}

var secretEndings = []string{"-token", "-api-key", "apikey", "-secret", "-secret-key", "-access-key", "-password", "-passwd", "-auth", "-jwt", "-credential", "-credentials", "-signature"}

func isSecretHeader(name string) bool {
	name = http.CanonicalHeaderKey(name)
	if secretHeaders[name] {
		return true
	}
	lower := strings.ToLower(name)
	return slices.ContainsFunc(secretEndings, func(e string) bool { return strings.HasSuffix(lower, e) })
}

var secretQuery = map[string]bool{
	"key": true, "apikey": true, "accesskey": true, "accesstoken": true, "token": true, "auth": true, "authtoken": true,
	"authorization": true, "oauthtoken": true, "idtoken": true, "refreshtoken": true, "sessiontoken": true,
	"clientsecret": true, "privatetoken": true, "jobtoken": true, "password": true, "passwd": true, "pwd": true,
	"secret": true, "secretkey": true, "bearer": true, "credential": true, "credentials": true, "subscriptionkey": true,
	"xapikey": true, "sentrykey": true, "usertoken": true, "personalaccesstoken": true, "pat": true, "jwt": true, "sessionid": true,
}

// signatureQuery are the keys by which object stores authenticate a URL.
var signatureQuery = map[string]bool{
	"sig": true, "signature": true, "jwt": true, "xamzsignature": true, "xamzcredential": true, "xamzsecuritytoken": true,
	"xgoogsignature": true, "xgoogcredential": true, "xosssignature": true, "xosscredential": true,
	"awsaccesskeyid": true, "googleaccessid": true, "skoid": true, "sktid": true, "keypairid": true,
}

// secretFields are names of body fields that hold credentials, and endings of
// such names, without case and punctuation. Words that mean other things as
// often (key, auth, signature) are not among them.
var secretFields = map[string]bool{
	"token": true, "secret": true, "jwt": true, "bearer": true, "authorization": true, "credential": true, "pat": true,
	"passphrase": true, "pwd": true, "xapikey": true,
}

var secretFieldEndings = []string{
	"apikey", "apitoken", "accesstoken", "refreshtoken", "authtoken", "authorizationtoken", "authenticationtoken", "bearertoken", "oauthtoken", "idtoken",
	"sessiontoken", "usertoken", "bottoken", "privatetoken", "jobtoken", "personalaccesstoken", "githubtoken", "clientsecret", "secretkey", "secretaccesskey",
	"accesskey", "accesskeyid", "privatekey", "signingkey", "webhooksecret", "password", "passwd", "subscriptionkey", "serviceaccountkey",
}

// isSecretField is isSecretQuery for the fields of bodies; "a[api_key]" is one.
func isSecretField(key string) bool {
	if len(key) > 64 || len(key) < 3 {
		return false
	}
	folded := foldField(key)
	if secretFields[folded] {
		return true
	}
	for _, e := range secretFieldEndings {
		if strings.HasSuffix(folded, e) {
			return true
		}
	}
	return false
}

func foldField(key string) string {
	plain := true
	for i := 0; i < len(key) && plain; i++ {
		plain = 'a' <= key[i] && key[i] <= 'z'
	}
	if plain {
		return key
	}
	b := make([]byte, 0, len(key))
	for i := 0; i < len(key); i++ {
		switch c := key[i]; {
		case 'A' <= c && c <= 'Z':
			b = append(b, c+'a'-'A')
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c >= 0x80:
			b = append(b, c)
		case c == '[' || c == '.' || c == '/' || c == ':':
			b = b[:0] // the last name of several counts
		}
	}
	return string(b)
}

// isTokenShaped: s is a credential of a well-known make and nothing else, maybe
// behind the word of a scheme.
func isTokenShaped(s string) bool {
	if len(s) < 16 || len(s) > 8<<10 {
		return false
	}
	if scheme, rest, ok := strings.Cut(s, " "); ok && (strings.EqualFold(scheme, "bearer") || strings.EqualFold(scheme, "token")) {
		s = rest
	}
	return strings.IndexByte(s, ' ') < 0 && strings.IndexByte(s, '\n') < 0 && hasTokenShape(s)
}

// Building a Replacer costs more than all else of a decision.
var separators = strings.NewReplacer("_", "", "-", "", ".", "")

func foldQuery(key string) string { return separators.Replace(strings.ToLower(key)) }

func isSecretQuery(key string) bool    { return secretQuery[foldQuery(key)] }
func isSignatureQuery(key string) bool { return signatureQuery[foldQuery(key)] }

// tokenShapes are the starts of credentials of well-known makes, with the
// least number of letters that must follow.
var tokenShapes = []struct {
	prefix string
	min    int
}{
	{"sk-ant-", 20}, {"sk-proj-", 20}, {"sk-svcacct-", 20}, {"sk-or-v1-", 20}, {"sk_live_", 16}, {"rk_live_", 16},
	{"ghp_", 30}, {"gho_", 30}, {"ghu_", 30}, {"ghs_", 30}, {"ghr_", 30}, {"github_pat_", 20}, {"glpat-", 16}, {"gldt-", 16},
	{"npm_", 36}, {"pypi-AgEI", 16}, {"hf_", 30}, {"xoxb-", 16}, {"xoxp-", 16}, {"xapp-", 16}, {"AKIA", 16}, {"ASIA", 16},
	{"AIza", 35}, {"ya29.", 16}, {"dop_v1_", 32}, {"shpat_", 32}, {"sntrys_", 16}, {"dckr_pat_", 16}, {"gsk_", 40}, {"xai-", 40},
	{"sntryu_", 32}, {"lin_api_", 32}, {"glcbt-", 16}, {"xoxc-", 16}, {"xoxs-", 16}, {"xoxe-", 16}, {"dckr_oat_", 16}, {"GOCSPX-", 20}, {"sk_test_", 16}, {"pplx-", 40},
}

// shapesBy finds the shapes by their first byte.
var shapesBy = func() (by [256][]int) {
	for i, t := range tokenShapes {
		by[t.prefix[0]] = append(by[t.prefix[0]], i)
	}
	return by
}()

// LooksLikeCredential reports whether a credential of a well-known make stands
// anywhere in s.
func LooksLikeCredential(s string) bool { return hasTokenShape(s) }

func hasTokenShape(s string) bool {
	if len(s) < minTokenShape {
		return false
	}
	inToken := false
	for i := 0; i <= len(s)-minTokenShape; i++ {
		if start := !inToken; start {
			for _, n := range shapesBy[s[i]] {
				t := &tokenShapes[n]
				if strings.HasPrefix(s[i:], t.prefix) && tokenRun(s[i+len(t.prefix):]) >= t.min {
					return true
				}
			}
		}
		inToken = isTokenByte(s[i])
	}
	return hasJWT(s)
}

// minTokenShape is the least length of a credential that is known by shape.
var minTokenShape = func() int {
	least := 20 + 1 + 8 + 1 // hasJWT
	for _, t := range tokenShapes {
		least = min(least, len(t.prefix)+t.min)
	}
	return least
}()

// hasJWT looks for three base64url parts of which the first begins like {"…
func hasJWT(s string) bool {
	for from := 0; ; {
		i := strings.Index(s[from:], "eyJ")
		if i < 0 {
			return false
		}
		i += from
		from = i + 3
		if n := tokenRun(s[i:]); n >= 20 && i+n < len(s) && s[i+n] == '.' {
			rest := s[i+n+1:]
			if m := tokenRun(rest); m >= 8 && m < len(rest) && rest[m] == '.' {
				return true
			}
		}
	}
}

func isTokenByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-'
}

func tokenRun(s string) int {
	n := 0
	for n < len(s) && isTokenByte(s[n]) {
		n++
	}
	return n
}
