package registry

import (
	"net/http"
	"net/url"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
)

// What Make makes loads, and judges requests as the catalogue's own registries
// do, tokens included.
func TestMake(t *testing.T) {
	for _, c := range []struct {
		o    Options
		want map[string]string // URL of a GET: operation and resource
	}{
		{Options{Name: "harbor", Host: "harbor.corp.example:8443", Realm: "https://harbor.corp.example:8443/service/token", Service: "harbor-registry"}, map[string]string{
			"https://harbor.corp.example:8443/v2/team/app/manifests/v1":                                                     "pull team/app",
			"https://harbor.corp.example:8443/service/token?service=harbor-registry&scope=repository:team/app:push":         "push team/app",
			"https://harbor.corp.example:8443/service/token?service=elsewhere&scope=repository:team/app:pull":               "",
			"https://harbor.corp.example:8443/service/token?service=harbor-registry&scope=repository:a:pull%20registry:x:*": "",
			"https://harbor.corp.example/v2/team/app/manifests/v1":                                                          "",
		}},
		{Options{Name: "gitlab-images", Host: "registry.gitlab.com", Realm: "https://gitlab.com/jwt/auth", Service: "container_registry"}, map[string]string{
			"https://gitlab.com/jwt/auth?service=container_registry&scope=repository:group/sub/app:pull": "pull group/sub/app",
			"https://gitlab.com/group/app": "",
		}},
		{Options{Name: "plain", Host: "r.corp.example"}, map[string]string{
			"https://r.corp.example/v2/app/blobs/sha256:00":                         "pull app",
			"https://r.corp.example/token?service=x&scope=repository:team/app:pull": "",
		}},
	} {
		file, err := Make(c.o)
		if err != nil {
			t.Fatal(err)
		}
		svc, err := catalog.Parse("x.yaml", file)
		if err != nil {
			t.Fatal(err)
		}
		for raw, want := range c.want {
			u, err := url.Parse(raw)
			if err != nil {
				t.Fatal(err)
			}
			at := u.Host
			if u.Port() == "" {
				at += ":443"
			}
			hp, err := hostport.Parse(at)
			if err != nil {
				t.Fatal(err)
			}
			r := catalog.Request{Scheme: "https", Host: hp.Host, Port: hp.Port, Method: "GET", Path: u.Path, Query: u.Query(), Header: http.Header{}}
			op, resource, err := svc.Identify(r)
			got := op.Name + " " + resource
			if err != nil {
				got = ""
			}
			if got != want {
				t.Errorf("%s: got %q (%v), want %q", raw, got, err, want)
			}
			if token := u.Path == "/service/token" || u.Path == "/jwt/auth"; svc.IssuesTokens(&r) != token {
				t.Errorf("%s: it issues tokens: %v", raw, !token)
			}
		}
	}
}

func TestMakeRefuses(t *testing.T) {
	for _, o := range []Options{
		{}, {Name: "x"}, {Name: "X", Host: "r.example"}, {Name: "x", Host: "r.example/v2"}, {Name: "x", Host: "127.0.0.1"},
		{Name: "x", Host: "r.example", Realm: "https://r.example/token"}, {Name: "x", Host: "r.example", Service: "s"},
		{Name: "x", Host: "r.example", Realm: "http://r.example/token", Service: "s"},
		{Name: "x", Host: "r.example", Realm: "https://r.example/token?x=1", Service: "s"},
		{Name: "x", Host: "r.example", Realm: "https://r.example/{a}", Service: "s"},
		{Name: "x", Host: "r.example", Realm: "https://r.example/token", Service: "s&scope=x"},
		{Name: "x", Host: "r.example", Realm: "https://r.example/token", Service: "s\nhosts: [a]"},
	} {
		if _, err := Make(o); err == nil {
			t.Errorf("%+v is accepted", o)
		}
	}
}
