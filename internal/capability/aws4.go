package capability

import (
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/catalog/sigv4"
)

// signedBy names the credential of the group whose placeholder key signed the
// request, as far as the key id tells. Whether the signature is true, recent and
// over the right things needs the clock and the body: the gateway checks it
// before it signs again.
func (q *question) signedBy(f catalog.Found, id Identity) string {
	values := q.request.Header["Authorization"]
	if f.Slot.Scheme != sigv4.Scheme || len(values) != 1 {
		return ""
	}
	a, err := sigv4.Parse(values[0])
	if err != nil {
		return ""
	}
	for _, c := range q.rules {
		if keyID, _, ok := sigv4.SplitKey(id.Placeholders[c.Credential]); ok && c.Credential != "" && a.KeyID == keyID {
			return c.Credential
		}
	}
	return ""
}

// placeholderParts are what of a placeholder must not stand elsewhere: of a pair
// both halves.
func placeholderParts(p string) (whole, half string) {
	if !strings.HasPrefix(p, "AKIA") {
		return p, ""
	}
	if keyID, secret, ok := sigv4.SplitKey(p); ok && len(keyID) == 20 {
		return keyID, secret
	}
	return p, ""
}
