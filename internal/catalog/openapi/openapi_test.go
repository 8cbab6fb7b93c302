package openapi

import (
	"flag"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
)

var update = flag.Bool("update", false, "write the golden files")

func load(t testing.TB, file []byte, name string) *catalog.Service {
	t.Helper()
	svc, err := catalog.Parse(name+".yaml", file)
	if err != nil {
		t.Fatalf("%v\n%s", err, file)
	}
	return svc
}

// TestDocuments imports documents as services publish them; what comes out is
// written down beside each, and the catalogue loads it.
func TestDocuments(t *testing.T) {
	for _, c := range []struct {
		file, name string
		resource   []string
	}{
		{"tickets30.yaml", "tickets", []string{"project"}},
		{"ledger31.json", "ledger", []string{"account-id"}},
	} {
		doc, err := os.ReadFile(filepath.Join("testdata", c.file))
		if err != nil {
			t.Fatal(err)
		}
		got, remarks, err := Import(doc, Options{Name: c.name, Resource: c.resource})
		if err != nil {
			t.Fatal(err)
		}
		load(t, got, c.name)
		for _, r := range remarks {
			got = append(got, "# remark: "+r+"\n"...)
		}
		golden := filepath.Join("testdata", c.name+".golden")
		if *update {
			if err := os.WriteFile(golden, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if want, _ := os.ReadFile(golden); string(want) != string(got) {
			t.Errorf("%s is no more what comes out (go test -update writes it)\n%s", golden, got)
		}
	}
}

// TestOperations: a request to an imported service is the document's operation on
// its resource, and what the document does not have is none.
func TestOperations(t *testing.T) {
	doc, err := os.ReadFile("testdata/tickets30.yaml")
	if err != nil {
		t.Fatal(err)
	}
	file, _, err := Import(doc, Options{Name: "tickets", Resource: []string{"project"}})
	if err != nil {
		t.Fatal(err)
	}
	svc := load(t, file, "tickets")
	const at = "https://tickets.example.com/v2"
	for _, c := range []struct{ method, url, body, want string }{
		{"GET", at + "/projects/web/tickets?page=2&filter=x", "", "list-tickets web"},
		{"GET", "https://eu.tickets.example.com/v2/projects/web/tickets", "", "list-tickets web"},
		{"GET", at + "/projects/web/tickets?admin=1", "", ""},
		{"GET", at + "/projects/web/tickets/7", "", "get-ticket web"},
		{"GET", at + "/projects/web/tickets/latest", "", "latest-ticket web"},
		{"DELETE", at + "/projects/web/tickets/7", "", "delete-ticket web"},
		{"DELETE", at + "/projects/web/tickets/7", `{"force":true}`, ""},
		{"POST", at + "/projects/web/tickets", `{"title":"x","body":"y","parent":{"title":"z"}}`, "create-ticket web"},
		{"POST", at + "/projects/web/tickets", `{"title":"x","admin":true}`, ""},
		{"PUT", at + "/projects/web/tickets", `{"title":"x"}`, ""},
		{"GET", "https://us.tickets.example.com/v2/projects/web/tickets", "", ""},
		{"GET", "https://tickets.example.com/v1/projects/web/tickets", "", ""},
		{"GET", at + "/projects", "", ""},
	} {
		u, err := url.Parse(c.url)
		if err != nil {
			t.Fatal(err)
		}
		host, err := hostport.ParseHost(u.Host)
		if err != nil {
			t.Fatal(err)
		}
		r := catalog.Request{Scheme: "https", Host: host, Port: 443, Method: c.method, Path: u.Path, Query: u.Query(), Header: http.Header{}}
		if c.body != "" {
			r.Body, r.HasBody = []byte(c.body), true
			r.Header.Set("Content-Type", "application/json")
		}
		got := ""
		unlisted := func(u catalog.Use) bool { return u.Operation == "" } // a field that no grant covers
		if op, resource, err := svc.Identify(r); err == nil && !slices.ContainsFunc(op.Uses, unlisted) {
			got = op.Name + " " + resource
		}
		if got != c.want {
			t.Errorf("%s %s: %q, want %q", c.method, c.url, got, c.want)
		}
	}
	if svc.Credential == nil || len(svc.Credential.Slots) != 1 || svc.Credential.Slots[0].Header != "X-Acme-Key" {
		t.Errorf("%+v", svc.Credential)
	}
}

// document is an OpenAPI document with some more text.
func document(rest string) string {
	return "openapi: 3.0.0\ninfo: {title: T}\nservers: [{url: https://api.example.com}]\n" + rest
}

const onePath = "paths: {/x: {get: {operationId: x}}}\n"

func TestSecuritySchemes(t *testing.T) {
	for scheme, want := range map[string]string{
		"{type: http, scheme: bearer}":                        "- {header: Authorization, scheme: Bearer}",
		"{type: http, scheme: Basic}":                         "- {header: Authorization, scheme: Basic}",
		"{type: oauth2}":                                      "- {header: Authorization, scheme: Bearer}",
		"{type: openIdConnect}":                               "- {header: Authorization, scheme: Bearer}",
		"{type: apiKey, in: header, name: x-key}":             "- {header: X-Key}",
		"{type: apiKey, in: query, name: key}":                "- {query: key}",
		"{type: apiKey, in: cookie, name: sid}":               "",
		"{type: mutualTLS}":                                   "",
		"{type: apiKey, in: header, name: \"a\\r\\nX-Evil\"}": "",
	} {
		file, remarks, err := Import([]byte(document("components: {securitySchemes: {s: "+scheme+"}}\n"+onePath)), Options{Name: "t"})
		if err != nil {
			t.Fatal(err)
		}
		if want == "" {
			if strings.Contains(string(file), "credential:") || len(remarks) != 1 {
				t.Errorf("%s: %q\n%s", scheme, remarks, file)
			}
			continue
		}
		if !strings.Contains(string(file), want) {
			t.Errorf("%s: no %q in\n%s", scheme, want, file)
		}
		load(t, file, "t")
	}
}

// TestHostile: documents that somebody made to hang, to fill the memory or to
// smuggle something into the service file.
func TestHostile(t *testing.T) {
	many := func(n int, one string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, one, i)
		}
		return b.String()
	}
	for name, c := range map[string]struct {
		doc  string
		say  string // of the error, or of a remark if it is accepted
		fine bool
	}{
		"a reference to itself": {document("components: {parameters: {P: {$ref: '#/components/parameters/P'}}}\npaths: {/x: {get: {operationId: x, parameters: [{$ref: '#/components/parameters/P'}]}}}\n"), "in circles", true},
		"a path to itself":      {document("paths: {/x: {$ref: '#/paths/~1x'}}\n"), "no operation", false},
		"a schema of itself ten times": {document("components: {schemas: {A: {allOf: [" + strings.TrimSuffix(strings.Repeat("{$ref: '#/components/schemas/A'},", 10), ",") + "], properties: {a: {}}}}}\n" +
			"paths: {/x: {post: {operationId: x, requestBody: {content: {application/json: {schema: {$ref: '#/components/schemas/A'}}}}}}}\n"), "", true},
		"schemas that double": {document("components:\n  schemas:\n    S60: {properties: {a: {}}}\n" + many(60, "    S%[1]d: {allOf: [{$ref: '#/components/schemas/S%[1]d'}, {$ref: '#/components/schemas/N%[1]d'}]}\n    N%[1]d: {anyOf: [{$ref: '#/components/schemas/S0'}, {$ref: '#/components/schemas/S60'}]}\n") +
			"paths: {/x: {post: {operationId: x, requestBody: {content: {application/json: {schema: {$ref: '#/components/schemas/S0'}}}}}}}\n"), "", true},
		"an alias":                    {document("a: &a [x]\nb: *a\n" + onePath), "line 5: the alias *a", false},
		"an alias bomb":               {document("a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c,*c,*c]\n" + onePath), "alias", false},
		"an anchor that holds itself": {document("a: &a {b: *a}\n" + onePath), "alias", false},
		"deep nesting":                {document("x: " + strings.Repeat("[", 100000) + strings.Repeat("]", 100000) + "\n" + onePath), "neither YAML nor JSON", false},
		"deep JSON":                   {`{"openapi":"3.0.0","x":` + strings.Repeat(`{"a":`, 50000) + "1" + strings.Repeat("}", 50000) + "}", "neither YAML nor JSON", false},
		"too large":                   {strings.Repeat(" ", maxDocument+1), "more than 32 MiB", false},
		"too many operations":         {document("paths:\n" + many(maxOperations+1, "  /p%d: {get: {}}\n")), "more than 5000 operations", false},
		"many servers":                {"openapi: 3.0.0\nservers:\n" + many(100, "- url: https://s%d.example.com\n") + onePath, "only the first 16", true},
		"many keys":                   {document("paths:\n  /x:\n    post:\n      operationId: x\n      requestBody:\n        content:\n          application/json:\n            schema:\n              properties:\n" + many(20000, "                k%d: {}\n")), "", true},
		"a file beside it":            {document("paths: {/x: {$ref: '/etc/passwd'}}\n"), "no operation", false},
		"another host":                {document("paths: {/x: {get: {operationId: x, parameters: [{$ref: 'https://evil.example/p.yaml#/P'}]}}}\n"), "leads out of the document", true},
		"a server with a user":        {"openapi: 3.0.0\nservers: [{url: 'https://u:p@api.example.com'}]\n" + onePath, "no server with a host", false},
		"a server that is a file":     {"openapi: 3.0.0\nservers: [{url: 'file:///etc/passwd'}, {url: /v1}]\n" + onePath, "no server with a host", false},
		"dots in a path":              {document("paths: {/a/../b: {get: {operationId: x}}, /y: {get: {operationId: y}}}\n"), "can't express the path", true},
		"YAML in a name":              {document("paths: {/y: {get: {operationId: \"x: {}\\noperations: {}\", summary: \"a\\n  evil: true\"}}}\n"), "", true},
		"YAML in a key":               {document("paths: {/y: {get: {operationId: y, parameters: [{in: query, name: \"a]\\nhosts: [evil.example\"}]}}}\n"), "", true},
		"no document":                 {"", "neither", false},
		"a list":                      {"[]", "not a mapping", false},
		"another version":             {"openapi: 4.0.0\n" + onePath, `openapi is "4.0.0"`, false},
		"binary":                      {"\x00\xff\xfe", "neither", false},
	} {
		file, remarks, err := Import([]byte(c.doc), Options{Name: "t"})
		if (err == nil) != c.fine {
			t.Errorf("%s: %v", name, err)
			continue
		}
		said := strings.Join(remarks, "\n")
		if err != nil {
			said = err.Error()
		}
		if !strings.Contains(said, c.say) {
			t.Errorf("%s: %q says nothing of %q", name, said, c.say)
		}
		if err == nil {
			svc, err := catalog.Parse("t.yaml", file)
			if err != nil && name != "YAML in a key" {
				t.Errorf("%s: %v\n%.2000s", name, err, file)
			}
			if svc != nil && slices.ContainsFunc(svc.Endpoints, func(e catalog.Endpoint) bool { return strings.Contains(e.Host.String(), "evil") }) {
				t.Errorf("%s: the document brought a host in", name)
			}
		}
	}
	if _, _, err := Import([]byte(document(onePath)), Options{Name: "../x"}); err == nil {
		t.Error("a name that leads elsewhere")
	}
}

// FuzzImport: whatever the document, there is an end, and a file that comes out
// is one that the catalogue's loader reads, with the name and the hosts that it
// may have. It does not have to accept it: that is said to the person.
func FuzzImport(f *testing.F) {
	for _, name := range []string{"tickets30.yaml", "ledger31.json"} {
		doc, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(doc)
	}
	f.Add([]byte(document(onePath)))
	f.Add([]byte("swagger: '2.0'\nhost: api.example.com\nbasePath: /v1\nschemes: [https]\nsecurityDefinitions: {k: {type: basic}}\npaths: {'/a/{b}': {post: {parameters: [{in: body, schema: {properties: {c: {}}}}]}}}\n"))
	f.Fuzz(func(t *testing.T, doc []byte) {
		file, remarks, err := Import(doc, Options{Name: "t"})
		if err != nil {
			return
		}
		if len(remarks) > 200 {
			t.Fatalf("%d remarks", len(remarks))
		}
		if svc, err := catalog.Parse("t.yaml", file); err == nil && svc.Name != "t" {
			t.Fatalf("the service is called %q\n%s", svc.Name, file)
		}
	})
}
