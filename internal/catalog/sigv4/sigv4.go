// Package sigv4 judges AWS signatures of version 4 on requests that a sandbox
// made: whose key signed, for which service and region, over which headers, and
// whether the signature is true.
//
// It is pure: the time is part of the input. It runs in the gateway on hostile
// bytes, and in the controller for policy explain. In: a canonical request with
// the headers as they came. Out: an error whose text says what to send instead,
// never a signature or a key. Signing again with the real key is not done here.
//
// What is accepted is the one form that AWS's own SDKs send: one Authorization
// header with AWS4-HMAC-SHA256, X-Amz-Date, and signed headers that include host
// (or :authority) and every x-amz-* header. Signatures in the query, SigV4A and SigV2 are not.
//
// Sources: AWS's guide "Create a signed AWS API request" (canonical request,
// 15 minutes of skew), "Signature Calculations: Transferring Payload in Multiple
// Chunks" (payload words), the endpoint lists of each service's reference.
package sigv4

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
)

const (
	// Algorithm is the only one accepted.
	Algorithm = "AWS4-HMAC-SHA256"
	// Scheme is Algorithm as a slot of the catalogue writes it.
	Scheme = "Aws4-hmac-sha256"
	// MaxSkew is how far X-Amz-Date may be from now; AWS's own bound.
	MaxSkew = 15 * time.Minute

	timeFormat = "20060102T150405Z"
	maxHeader  = 4 << 10
	maxSigned  = 64
)

// EmptyHash is the SHA-256 of no bytes, in hex.
const EmptyHash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// The words that may stand in X-Amz-Content-Sha256 instead of a hash.
const (
	Unsigned        = "UNSIGNED-PAYLOAD"
	UnsignedTrailer = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
)

// Authorization is a parsed Authorization header.
type Authorization struct {
	KeyID                 string
	Date, Region, Service string
	// Signed are the names of the signed headers: lower case, sorted, unique.
	Signed    []string
	Signature string // 64 hex digits
}

// Parse reads the header's value. Keys come in any order, once each, separated
// by commas.
func Parse(value string) (Authorization, error) {
	var a Authorization
	if len(value) > maxHeader {
		return a, errors.New("the Authorization header is too long")
	}
	rest, ok := strings.CutPrefix(value, Algorithm+" ")
	if !ok {
		name, _, _ := strings.Cut(value, " ")
		switch {
		case strings.HasPrefix(name, "AWS4-ECDSA"):
			return a, errors.New("SigV4A signatures are not accepted; sign for one region with " + Algorithm)
		case name == "AWS":
			return a, errors.New("SigV2 signatures are not accepted; sign with " + Algorithm)
		}
		return a, errors.New("the request is not signed with " + Algorithm)
	}
	var credential, signed string
	for part := range strings.SplitSeq(rest, ",") {
		key, v, ok := strings.Cut(strings.Trim(part, " "), "=")
		var to *string
		switch key {
		case "Credential":
			to = &credential
		case "SignedHeaders":
			to = &signed
		case "Signature":
			to = &a.Signature
		}
		if !ok || to == nil || *to != "" || v == "" {
			return Authorization{}, errors.New("the Authorization header is not Credential, SignedHeaders and Signature, once each")
		}
		*to = v
	}
	scope := strings.Split(credential, "/")
	if len(scope) != 5 || scope[4] != "aws4_request" {
		return Authorization{}, errors.New("the credential scope is not KEY/date/region/service/aws4_request")
	}
	a.KeyID, a.Date, a.Region, a.Service = scope[0], scope[1], scope[2], scope[3]
	switch {
	case len(a.KeyID) < 16 || len(a.KeyID) > 128 || !only(a.KeyID, alnum):
		return Authorization{}, errors.New("the access key id is not one")
	case len(a.Date) != 8 || !only(a.Date, digits) || !only(a.Region, lower+digits+"-") || !only(a.Service, lower+digits+"-"):
		return Authorization{}, errors.New("the credential scope has a date, region or service that is none")
	case len(a.Signature) != 64 || !only(a.Signature, digits+"abcdef"):
		return Authorization{}, errors.New("the signature is not 64 lower-case hex digits")
	}
	a.Signed = strings.Split(signed, ";")
	if len(a.Signed) > maxSigned {
		return Authorization{}, errors.New("too many signed headers")
	}
	for i, name := range a.Signed {
		if name != authority && !only(name, lower+digits+"-_.") || i > 0 && a.Signed[i-1] >= name {
			return Authorization{}, errors.New("the signed headers are not lower-case, sorted and unique")
		}
	}
	return a, nil
}

// authority is what some SDKs sign instead of host when they speak HTTP/2.
const authority = ":authority"

const (
	lower  = "abcdefghijklmnopqrstuvwxyz"
	digits = "0123456789"
	alnum  = lower + "ABCDEFGHIJKLMNOPQRSTUVWXYZ" + digits
)

func only(s, letters string) bool { return s != "" && strings.Trim(s, letters) == "" }

// SplitKey splits "ID:SECRET", the form in which a placeholder is held.
func SplitKey(pair string) (id, secret string, ok bool) {
	id, secret, ok = strings.Cut(pair, ":")
	return id, secret, ok && id != "" && secret != ""
}

// Request is what a signature is about.
type Request struct {
	Method string
	// Host is the Host header as the client sent it, without a default port.
	Host string
	// Path is decoded once.
	Path  string
	Query url.Values
	// Header is as it came; Host is not in it.
	Header http.Header
	// Length is Content-Length, or -1.
	Length int64
	// Body is the whole body if Whole, else it has not been read.
	Body  []byte
	Whole bool
}

// Verify reports why the signature is not a true one of the placeholder key for
// this request. expected is what the host says about the scope.
func Verify(r Request, keyID, secret string, expected Scope, now time.Time) (Authorization, error) {
	values := r.Header.Values("Authorization")
	if len(values) != 1 {
		return Authorization{}, errors.New("the request is not signed, or signed twice")
	}
	a, err := Parse(values[0])
	if err != nil {
		return a, err
	}
	if keyID == "" || secret == "" || subtle.ConstantTimeCompare([]byte(a.KeyID), []byte(keyID)) != 1 {
		return a, errors.New("the request is signed by another key than the session's")
	}
	if err := expected.admits(a); err != nil {
		return a, err
	}
	if err := a.checkTime(r.Header, now); err != nil {
		return a, err
	}
	if err := a.checkSigned(r.Header); err != nil {
		return a, err
	}
	payload, err := PayloadHash(r)
	if err != nil {
		return a, err
	}
	canonical, err := a.canonical(r, payload)
	if err != nil {
		return a, err
	}
	date := r.Header.Get("X-Amz-Date")
	want := hex.EncodeToString(mac(a.key(secret), stringToSign(a, date, canonical)))
	if subtle.ConstantTimeCompare([]byte(want), []byte(a.Signature)) != 1 {
		return a, errors.New("the signature does not match the request")
	}
	return a, nil
}

func (a Authorization) checkTime(h http.Header, now time.Time) error {
	dates := h.Values("X-Amz-Date")
	if len(dates) != 1 {
		return errors.New("a signed request needs one X-Amz-Date header")
	}
	t, err := time.Parse(timeFormat, dates[0])
	if err != nil || t.Format(timeFormat) != dates[0] || dates[0][:8] != a.Date {
		return errors.New("X-Amz-Date is not a time, or not on the day of the credential scope")
	}
	if d := now.Sub(t); d > MaxSkew || d < -MaxSkew {
		return fmt.Errorf("the request was signed %v away from now; at most %v", d.Round(time.Second), MaxSkew)
	}
	return nil
}

// checkSigned demands a signature over everything that AWS gives a meaning to.
func (a Authorization) checkSigned(h http.Header) error {
	if !slices.Contains(a.Signed, "host") && !slices.Contains(a.Signed, authority) {
		return errors.New("the header host is not signed")
	}
	for name := range h {
		l := strings.ToLower(name)
		if strings.HasPrefix(l, "x-amz-") && !slices.Contains(a.Signed, l) {
			return fmt.Errorf("the header %q is not signed", clip(l))
		}
	}
	return nil
}

func clip(s string) string {
	if len(s) > 60 {
		return s[:60] + "…"
	}
	return s
}

// PayloadHash returns what stands for the body in the canonical request, and
// refuses a hash that is not the body's, as far as the body is known.
func PayloadHash(r Request) (string, error) {
	values := r.Header.Values("X-Amz-Content-Sha256")
	if len(values) > 1 {
		return "", errors.New("X-Amz-Content-Sha256 occurs twice")
	}
	if len(values) == 0 {
		if !r.Whole {
			return "", errors.New("a body that is not read here needs X-Amz-Content-Sha256")
		}
		return hash(r.Body), nil
	}
	v := values[0]
	switch {
	case v == Unsigned, v == UnsignedTrailer:
		return v, nil
	case strings.HasPrefix(v, "STREAMING-"):
		return "", errors.New("bodies signed in chunks are not accepted; send the hash of the body, " + Unsigned + " or " + UnsignedTrailer)
	case len(v) != 64 || !only(v, digits+"abcdef"):
		return "", errors.New("X-Amz-Content-Sha256 is neither a hash nor a word that is known")
	case r.Whole && subtle.ConstantTimeCompare([]byte(hash(r.Body)), []byte(v)) != 1:
		return "", errors.New("X-Amz-Content-Sha256 is not the hash of the body")
	}
	return v, nil
}

// canonical writes the canonical request over exactly the signed headers.
func (a Authorization) canonical(r Request, payload string) (string, error) {
	var b strings.Builder
	b.WriteString(r.Method + "\n" + Path(r.Path, a.Service) + "\n" + Query(r.Query) + "\n")
	for _, name := range a.Signed {
		b.WriteString(name + ":")
		switch name {
		case "host", authority:
			b.WriteString(r.Host)
		case "content-length":
			if r.Length < 0 {
				return "", errors.New("content-length is signed and the request has none")
			}
			b.WriteString(strconv.FormatInt(r.Length, 10))
		default:
			values := r.Header.Values(name)
			if len(values) == 0 {
				return "", fmt.Errorf("the signed header %q is not in the request", clip(name))
			}
			for i, v := range values {
				if i > 0 {
					b.WriteByte(',')
				}
				b.WriteString(squeeze(v))
			}
		}
		b.WriteByte('\n')
	}
	b.WriteString("\n" + strings.Join(a.Signed, ";") + "\n" + payload)
	return b.String(), nil
}

// squeeze trims and makes one space of several.
func squeeze(s string) string {
	s = strings.TrimSpace(s)
	for strings.Contains(s, "  ") {
		s = strings.ReplaceAll(s, "  ", " ")
	}
	return s
}

// Path is the canonical form of a decoded path: escaped once for S3, whose keys
// are taken as they are, and twice for every other service.
func Path(decoded, service string) string {
	if decoded == "" {
		return "/"
	}
	p := escape(decoded, true)
	if !singleEscape(service) {
		p = escape(p, true)
	}
	return p
}

func singleEscape(service string) bool { return service == "s3" }

// Query is the canonical query.
func Query(q url.Values) string {
	var pairs []string
	for k, values := range q {
		for _, v := range values {
			pairs = append(pairs, escape(k, false)+"="+escape(v, false))
		}
	}
	// By name and then by value, both escaped; '=' would sort after digits.
	sort.Slice(pairs, func(i, j int) bool {
		ki, vi, _ := strings.Cut(pairs[i], "=")
		kj, vj, _ := strings.Cut(pairs[j], "=")
		if ki != kj {
			return ki < kj
		}
		return vi < vj
	})
	return strings.Join(pairs, "&")
}

const unreserved = alnum + "-._~"

func escape(s string, slash bool) string {
	const hexDigits = "0123456789ABCDEF"
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		if strings.IndexByte(unreserved, c) >= 0 || slash && c == '/' {
			b.WriteByte(c)
			continue
		}
		b.WriteByte('%')
		b.WriteByte(hexDigits[c>>4])
		b.WriteByte(hexDigits[c&15])
	}
	return b.String()
}

func stringToSign(a Authorization, date, canonical string) string {
	return Algorithm + "\n" + date + "\n" + a.Date + "/" + a.Region + "/" + a.Service + "/aws4_request\n" + hash([]byte(canonical))
}

// key derives the signing key of the scope.
func (a Authorization) key(secret string) []byte {
	k := mac([]byte("AWS4"+secret), a.Date)
	for _, part := range []string{a.Region, a.Service, "aws4_request"} {
		k = mac(k, part)
	}
	return k
}

func mac(key []byte, data string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(data))
	return h.Sum(nil)
}

func hash(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
