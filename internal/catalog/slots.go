package catalog

import (
	"encoding/base64"
	"net/http"
	"slices"
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
}

// String names the slot for a message; it never has a value in it.
func (s Slot) String() string {
	switch {
	case s.Query != "":
		return "the query parameter " + clip(s.Query, 40)
	case s.Header == "":
		return "the path"
	case s.Scheme != "":
		return "the header " + clip(s.Header, 40) + " (" + clip(s.Scheme, 20) + ")"
	}
	return "the header " + clip(s.Header, 40)
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
	// Infrastructure: cookies of a content delivery network, which identify
	// nobody; they are stripped.
	Infrastructure
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
			case scheme || name == "Authorization" || name == "Proxy-Authorization":
				found = append(found, authorization(name, v))
			case name == "Cookie":
				kind := Named
				if onlyInfrastructure(v) {
					kind = Infrastructure
				}
				add(Slot{Header: name}, kind, v)
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

func foldQuery(key string) string {
	return strings.NewReplacer("_", "", "-", "", ".", "").Replace(strings.ToLower(key))
}

func isSecretQuery(key string) bool    { return secretQuery[foldQuery(key)] }
func isSignatureQuery(key string) bool { return signatureQuery[foldQuery(key)] }

// onlyInfrastructure knows the cookies that content delivery networks set on
// every answer.
func onlyInfrastructure(v string) bool {
	for c := range strings.SplitSeq(v, ";") {
		name, _, ok := strings.Cut(strings.TrimSpace(c), "=")
		if !ok || name != "__cf_bm" && name != "_cfuvid" && name != "__cflb" {
			return false
		}
	}
	return true
}

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
}

// hasTokenShape looks for a credential of a well-known make anywhere in s.
func hasTokenShape(s string) bool {
	for _, t := range tokenShapes {
		for from := 0; ; {
			i := strings.Index(s[from:], t.prefix)
			if i < 0 {
				break
			}
			i += from
			from = i + len(t.prefix)
			if (i == 0 || !isTokenByte(s[i-1])) && tokenRun(s[from:]) >= t.min {
				return true
			}
		}
	}
	return hasJWT(s)
}

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
