package catalog

import (
	"net/http"
	"slices"

	"go.yaml.in/yaml/v3"
)

// publicKey is a key that a program of somebody else has built in, where
// everybody can read it: whoever sends it reaches that program's owner and
// nobody else. In its place it is no foreign credential.
type publicKey struct {
	header, query, body string
	values              []string
}

// PublicKey reports whether f is one of the service's public keys in its place.
func (s *Service) PublicKey(r Request, f Found) bool {
	for i := range s.publicKeys {
		k := &s.publicKeys[i]
		var all []string
		switch {
		case k.header != "" && k.header == f.Slot.Header:
			all = r.Header.Values(k.header)
		case k.query != "" && k.query == f.Slot.Query:
			all = r.Query[k.query]
		case k.body != "" && k.body == f.Slot.Body:
			// The same field of several objects is found several times.
			return slices.ContainsFunc(k.values, func(v string) bool { return f.Value.Equal([]byte(v)) })
		}
		// A second value could be the one that counts.
		if len(all) == 1 && slices.ContainsFunc(k.values, func(g string) bool { return globMatch(g, all[0]) }) {
			return true
		}
	}
	return false
}

// publicKeyHeader reports whether a header has a public key's place.
func (s *Service) publicKeyHeader(name string) bool {
	return slices.ContainsFunc(s.publicKeys, func(k publicKey) bool { return k.header == name })
}

func (s *Service) readPublicKey(d *reader, n *yaml.Node) {
	var k publicKey
	d.fields(n, map[string]func(*yaml.Node){
		"header": d.str(&k.header), "query": d.str(&k.query), "body": d.str(&k.body), "values": d.globs(&k.values),
	})
	places := 0
	for _, p := range []string{k.header, k.query, k.body} {
		if p != "" {
			places++
		}
	}
	if places != 1 || len(k.values) == 0 {
		d.fail(n, "a public key has one of header, query and body, and values")
	}
	if k.header != http.CanonicalHeaderKey(k.header) {
		d.fail(n, "write the header as %s", http.CanonicalHeaderKey(k.header))
	}
	for _, v := range k.values {
		if len(v) < 20 {
			d.fail(n, "%q is no key: it has fewer than 20 letters", v)
		}
	}
	s.publicKeys = append(s.publicKeys, k)
}
