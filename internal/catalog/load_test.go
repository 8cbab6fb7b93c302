package catalog

import (
	"strings"
	"testing"
	"testing/fstest"
)

const small = `service: small
description: d
hosts: [api.example.com]
credential:
  env: [SMALL_KEY]
  placeholder: "small-{hex:32}"
  slots: [{header: X-Api-Key}]
bodies:
  b:
    limit: 1KiB
    keys: [a]
    features: [{at: a.type, free: [x*], needs: {a.f: [y]}}]
    otherwise: a.f
operations:
  a:
    allows: A.
    does-not: B.
    body: b
    match: [POST api.example.com/a]
  a.f:
    feature-of: [a]
    allows: A.
    does-not: B.
`

func TestLoadIsStrict(t *testing.T) {
	for _, c := range []struct{ name, old, new, want string }{
		{"as it is", "", "", ""},
		{"unless a place", "free: [x*]", "unless: [c], free: [x*]", "small.yaml:12:16: a feature with unless: needs present: and nothing else"},
		{"unless of what nobody grants", "needs: {a.f: [y]}}", "needs: {a.f: [y]}}, {unless: [a], present: a.g}", `"a.g" is not an operation with feature-of`},
		{"unknown key", "description: d", "description: d\ncolour: red", `small.yaml:3:1: unknown key "colour"`},
		{"duplicate key", "description: d", "description: d\ndescription: e", `small.yaml:3:1: "description" occurs twice`},
		{"anchor", "hosts: [api.example.com]", "hosts: &h [api.example.com]", "small.yaml:3:8: expected a list"},
		{"alias", "[SMALL_KEY]", "&a [X]\n  placeholders: *a", "expected a"},
		{"merge", "description: d", "description: d\n<<: {a: b}", "expected a plain key"},
		{"second document", "service: small", "service: small\n---\nservice: small", "more than one document"},
		{"not YAML", "service: small", "service: [", "small.yaml: yaml"},
		{"IP host", "[api.example.com]", "[10.0.0.1]", "small.yaml:3:9: \"10.0.0.1\" is an IP address"},
		{"no host", "hosts: [api.example.com]", "", "are all needed"},
		{"host twice", "[api.example.com]", "[api.example.com, api.example.com]", "listed twice"},
		{"other host in a route", "POST api.example.com", "POST www.example.com", "www.example.com is not among the hosts"},
		{"lower-case method", "POST api", "post api", `"post" is not a method`},
		{"** in the middle", "example.com/a]", "example.com/**/a]", "** may only be the last segment"},
		{"unknown body", "body: b", "body: c", `no body section "c"`},
		{"feature without operation", "needs: {a.f: [y]}", "needs: {a.g: [y]}", `"a.g" is not an operation with feature-of:`},
		{"feature that is an operation", "otherwise: a.f", "otherwise: a", `"a" is not an operation with feature-of:`},
		{"feature of nothing", "feature-of: [a]", "feature-of: [z]", `there is no operation "z"`},
		{"value twice", "free: [x*], needs", "free: [x*, y], needs", `"y" is listed twice`},
		{"two stars", "free: [x*]", "free: [x*y*]", "more than one *"},
		{"no allows", "    allows: A.\n    does-not: B.\n    body", "    does-not: B.\n    body", "allows: and does-not: are both needed"},
		{"weak placeholder", "{hex:32}", "{hex:4}", "fewer than 20 random letters"},
		{"unknown alphabet", "{hex:32}", "{runes:32}", "is not {alphabet:count}"},
		{"header spelling", "header: X-Api-Key", "header: x-api-key", "write the header as X-Api-Key"},
		{"bad limit", "limit: 1KiB", "limit: 9999999999MiB", "expected a size"},
		{"ambiguous", "  a.f:\n", "  z:\n    allows: A.\n    does-not: B.\n    body: any\n    match: ['GET,POST api.example.com/{x}']\n  a.f:\n", "one request could be both a and z"},
		{"declared order", "  a.f:\n", "  z:\n    allows: A.\n    does-not: B.\n    except: [a]\n    body: any\n    match: ['GET,POST api.example.com/{x}']\n  a.f:\n", ""},
		{"other name", "service: small", "service: big", `service is called "big"`},
	} {
		data := strings.Replace(small, c.old, c.new, 1)
		_, err := Load(fstest.MapFS{"services/small.yaml": {Data: []byte(data)}, "services/README.md": {}})
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
}

func TestLoadReportsAll(t *testing.T) {
	_, err := Load(fstest.MapFS{
		"a.yaml": {Data: []byte("service: a\nx: 1\ny: 2\n")},
		"b.yaml": {Data: []byte("service: b\nz: 1\n")},
	})
	for _, want := range []string{"a.yaml:2:1", "a.yaml:3:1", "b.yaml:2:1"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %s in %v", want, err)
		}
	}
}

func TestDefaultIsTheWholeCatalogue(t *testing.T) {
	all, lazy := embedded(t), Default()
	if len(all.Names()) < 7 || len(lazy.Names()) != len(all.Names()) {
		t.Fatalf("%q and %q", all.Names(), lazy.Names())
	}
	for _, name := range all.Names() {
		if _, ok := lazy.Service(name); !ok {
			t.Errorf("%s does not load lazily", name)
		}
	}
	if _, ok := lazy.Service("nothing"); ok {
		t.Error("an unknown service")
	}
	var none *Catalog
	if _, ok := none.Service("github"); ok || len(none.Names()) > 0 {
		t.Error("a nil catalogue has a service")
	}
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte(small))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("service: {"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, err := parseService("x.yaml", data); (s == nil) == (err == nil) {
			t.Fatal("neither service nor error")
		}
	})
}
