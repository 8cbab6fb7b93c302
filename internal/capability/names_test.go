package capability

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Whatever a request does is granted by name, and by no other name: of every
// request in the catalogue's golden tables each operation and feature that it is
// has to be granted, all others together do not do.
func TestEachOperationIsGrantedByItsName(t *testing.T) {
	const key = "placeholder-placeholder-placeholder-0123456789"
	id := Identity{Placeholders: map[string]string{"key": key}}
	cat := catalog.Default()
	requests, left := 0, 0
	for _, name := range cat.Names() {
		svc, _ := cat.Service(name)
		file := filepath.Join("..", "catalog", "testdata", "identify", name+".txt")
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		x, err := svc.Examples(file, data)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range x.Answers {
			// Messages and SSH are decided elsewhere (TestMessages, TestDecideSSH); a
			// signature is not made up here (TestSignedRequests).
			signs := svc.Credential != nil && svc.Credential.Sign != ""
			if !strings.HasPrefix(a.Got, "= ") || strings.Contains(a.Got, " ! ") || strings.Contains(a.Got, " @ ") || strings.Contains(a.Got, "+ ?") || a.Message != nil || a.Asked.Scheme == "ssh" || signs {
				continue
			}
			op, resource, err := svc.Identify(a.Asked)
			if err != nil {
				t.Fatal(err)
			}
			if holdsOther(svc, a.Asked) || slices.ContainsFunc(op.Uses, func(u catalog.Use) bool { return unnameable(svc, u) }) {
				continue
			}
			needs, resources := []string{op.Name}, map[string][]string{op.Name: {resource}}
			for _, u := range op.Uses {
				if u.Own {
					resources[u.Operation] = append(resources[u.Operation], u.Resource)
				} else if !slices.Contains(resources[u.Operation], resource) {
					resources[u.Operation] = append(resources[u.Operation], resource)
				}
				if !slices.Contains(needs, u.Operation) {
					needs = append(needs, u.Operation)
				}
			}
			decide := func(without string) Decision {
				var rules []Rule
				for i := range svc.Operations {
					o := &svc.Operations[i]
					r := Rule{Pos: vocabulary.Position{File: "p.yaml", Line: i + 1}, Service: name, Operations: []string{o.Name}}
					if o.Name == without || o.NeedsResources && resources[o.Name] == nil {
						continue
					}
					for _, of := range resources[o.Name] {
						if o.ResourceTemplate != "" && of != "" {
							r.Resources = append(r.Resources, of)
						}
					}
					if svc.Credential != nil {
						r.Credential = "key"
					}
					rules = append(rules, r)
				}
				s, err := Compile(Spec{Rules: rules}, cat)
				if err != nil {
					t.Fatalf("%s:%d: %v", file, a.Line, err)
				}
				return s.Decide(withCredential(svc, a.Asked, key), id)
			}
			d := decide("")
			if d.Verdict != vocabulary.Allow && strings.Contains(d.Reason.Message, "are answered on the host") {
				continue // TestExchange
			}
			requests++
			if d.Verdict != vocabulary.Allow {
				t.Errorf("%s:%d: %s, everything is granted: %v", file, a.Line, a.Request, d.Reason)
				continue
			}
			for _, n := range needs {
				if n == op.Name && via(svc, op.Name, needs[1:]) {
					continue // granted by its features
				}
				left++
				if d := decide(n); d.Verdict == vocabulary.Allow {
					t.Errorf("%s:%d: %s is allowed without %s", file, a.Line, a.Request, n)
				}
			}
		}
	}
	t.Logf("%d requests, %d operations left out", requests, left)
	if requests < 650 || left < requests {
		t.Errorf("%d requests, %d operations left out: the tables have more", requests, left)
	}
}

// unnameable uses have a resource of their own that no grant can name: they are
// never allowed.
func unnameable(svc *catalog.Service, u catalog.Use) bool {
	return u.Own && u.Resource == "" && slices.ContainsFunc(svc.Operations, func(o catalog.Operation) bool { return o.Name == u.Operation && o.ResourceTemplate != "" })
}

// holdsOther: a credential that is not the session's stands in the service's slot.
func holdsOther(svc *catalog.Service, r catalog.Request) bool {
	if svc.Credential == nil {
		return false
	}
	return slices.ContainsFunc(catalog.CredentialsIn(r, svc.Credential.Slots), func(f catalog.Found) bool {
		return !svc.PublicKey(r, f) && slices.ContainsFunc(svc.Credential.Slots, func(at catalog.Slot) bool { return at.Place() == f.Slot })
	})
}

// withCredential puts the session's own into its first slot.
func withCredential(svc *catalog.Service, r catalog.Request, key string) catalog.Request {
	r.Header = r.Header.Clone()
	if svc.Credential == nil || len(svc.Credential.Slots) == 0 {
		return r
	}
	for _, slot := range svc.Credential.Slots {
		if slot.Header != "" && slot.Scheme != "Basic" && slot.Prefix == "" {
			r.Header.Set(slot.Header, strings.TrimSpace(slot.Scheme+" "+key))
			return r
		}
	}
	switch slot := svc.Credential.Slots[0]; {
	case slot.Query != "":
		r.Query.Set(slot.Query, key)
	case slot.Scheme == "Basic":
		r.Header.Set(slot.Header, strings.TrimPrefix(basic("x:"+key), "Authorization: "))
	}
	return r
}

func via(svc *catalog.Service, op string, features []string) bool {
	return slices.ContainsFunc(svc.Operations, func(o catalog.Operation) bool {
		return slices.Contains(features, o.Name) && slices.Contains(o.Via, op)
	})
}
