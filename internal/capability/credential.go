package capability

import (
	"net/http"
	"slices"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/switches"
)

// credentials settles what the request presents. Allowed are nothing at all,
// or one of the group's placeholders, as all of the value, once, in one of the
// group's slots. Everything else that looks like a credential is foreign, and a
// placeholder anywhere else is misplaced. Of a body only what the catalogue
// found counts: fields that are made for credentials, and values that are one
// where no text is expected. No body is ever changed, so a placeholder in a text
// stays a placeholder, and agents do write their own environment into
// conversations.
func (q *question) credentials(s *Set) {
	if s.limits {
		return // judged by the set that is limited
	}
	id := q.identity
	slots := q.slots
	if q.svc != nil && q.svc.Credential != nil {
		slots = q.svc.Credential.Slots
	}
	for _, f := range catalog.CredentialsIn(q.request, slots) {
		if q.op != nil && q.op.Signs(f) || q.svc != nil && q.svc.PublicKey(q.request, f) || q.issuedToken(f) {
			continue
		}
		name := ""
		at := slices.IndexFunc(q.slots, func(s catalog.Slot) bool { return s.Place() == f.Slot })
		if q.presented == "" && !q.issued && at >= 0 {
			name = q.placeholderOf(f, id)
		}
		if name == "" {
			q.violate(CodeForeignCredential, f.Slot)
			if q.anyPlaceholder(f, id) {
				q.violate(CodePlaceholderMisplaced, f.Slot)
			}
			continue
		}
		q.presented, q.slot = name, q.slots[at]
	}
	q.bodyCredentials()
	for _, p := range id.Placeholders {
		if p != "" {
			whole, half := placeholderParts(p)
			q.searchElsewhere(whole)
			if half != "" {
				q.searchElsewhere(half)
			}
		}
	}
	if q.violation != "" {
		q.presented, q.issued = "", false
	}
}

// issuedToken settles a token that the service handed out in this session: it
// counts as what it was asked with, and stands alone in its own slot.
func (q *question) issuedToken(f catalog.Found) bool {
	if q.identity.Issued == nil || q.svc == nil || !q.svc.TakesTokens(f.Slot) || q.presented != "" || q.issued {
		return false
	}
	name, ok := q.identity.Issued(q.svc.Name, f.Value)
	if !ok {
		return false
	}
	q.presented, q.issued, q.slot = name, true, f.Slot
	return true
}

// bodyCredentials settles what the body presents: the placeholder of the
// group's credential, where the catalogue says that it may stand.
func (q *question) bodyCredentials() {
	for _, f := range q.contents.Credentials {
		if q.svc != nil && q.svc.PublicKey(q.request, f) {
			continue
		}
		if name := q.ownPlaceholder(f, q.identity); f.Kind == catalog.Placed && name != "" && (q.presented == "" || q.presented == name) {
			q.inBody = q.inBody || q.presented == ""
			q.presented = name
			continue
		}
		q.violate(CodeForeignCredential, f.Slot)
		if q.anyPlaceholder(f, q.identity) {
			q.violate(CodePlaceholderMisplaced, f.Slot)
		}
	}
}

// placeholderOf names the credential of the group whose placeholder f is.
func (q *question) placeholderOf(f catalog.Found, id Identity) string {
	if q.svc != nil && q.svc.Credential != nil && q.svc.Credential.Sign == catalog.SignAWS4 {
		return q.signedBy(f, id)
	}
	return q.ownPlaceholder(f, id)
}

func (q *question) ownPlaceholder(f catalog.Found, id Identity) string {
	for _, c := range q.rules {
		if p := id.Placeholders[c.Credential]; c.Credential != "" && p != "" && f.Value.Equal([]byte(p)) {
			return c.Credential
		}
	}
	return ""
}

func (q *question) anyPlaceholder(f catalog.Found, id Identity) bool {
	for _, p := range id.Placeholders {
		if p != "" && f.Value.Equal([]byte(p)) {
			return true
		}
	}
	return false
}

// violate notes the worse of two violations, and of equal ones the first by
// name, so that equal requests get equal answers.
func (q *question) violate(code string, slot catalog.Slot) {
	if switches.Off("credentials") {
		return
	}
	if q.violation == CodePlaceholderMisplaced && code != q.violation || q.violation == code && q.culprit.String() <= slot.String() {
		return
	}
	q.violation, q.culprit = code, &slot
}

// searchElsewhere looks for a placeholder outside of the accepted slot, inside
// of longer values too.
func (q *question) searchElsewhere(placeholder string) {
	if strings.Contains(q.request.Path, placeholder) {
		q.violate(CodePlaceholderMisplaced, catalog.Slot{})
	}
	for key, values := range q.request.Query {
		for _, v := range values {
			if strings.Contains(key, placeholder) {
				q.violate(CodePlaceholderMisplaced, catalog.Slot{Query: "(a key)"})
			}
			if strings.Contains(v, placeholder) && !(q.presented != "" && q.slot.Query == key) {
				q.violate(CodePlaceholderMisplaced, catalog.Slot{Query: key})
			}
		}
	}
	for name, values := range q.request.Header {
		name = http.CanonicalHeaderKey(name)
		for _, v := range values {
			if strings.Contains(v, placeholder) && !(q.presented != "" && q.slot.Header == name) {
				q.violate(CodePlaceholderMisplaced, catalog.Slot{Header: name})
			}
		}
	}
}
