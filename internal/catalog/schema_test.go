package catalog

import (
	"os"
	"strings"
	"testing"
)

// TestSchemaIsStrict breaks one line of the demo service at a time.
func TestSchemaIsStrict(t *testing.T) {
	data, err := os.ReadFile("testdata/engine/demo.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, old, new, want string }{
		{"as it is", "", "", ""},
		{"no body", "    match: [PUT api.example.com/raw]\n    body: any\n    body-limit: 4KiB", "    match: [PUT api.example.com/raw]", "raw takes POST, PUT, PATCH, DELETE or the like: say body:"},
		{"unknown body", "    body: more\n", "    body: moore\n", `no body section "moore"`},
		{"body of a GET", "    match: [\"GET {page}.github.io/**\"]", "    body: none\n    match: [\"GET {page}.github.io/**\"]", "a method that can have one"},
		{"limit of a section", "    body: more\n", "    body: more\n    body-limit: 1KiB\n", "body-limit: belongs to body: any"},
		{"section called any", "  more: {like", "  any: {limit: 1KiB, keys: [a]}\n  more: {like", "a meaning of its own"},
		{"unknown kind", "kind: form", "kind: forms", `no kind of body "forms"`},
		{"files of a form", "    kind: form\n", "    kind: form\n    files: [a]\n", "files: belongs to kind: multipart"},
		{"shared suffix", "    match: [\"GET {page}.github.io/**\"]\n    resource: \"{page}\"", "    match: [\"GET {page}.github.io/**\"]", "anybody can own a name under .github.io"},
		{"shared suffix in part", "    match: [\"GET {page}.github.io/**\"]\n    resource: \"{page}\"", "    match: [\"GET {page}.github.io/{x}/**\"]\n    resource: \"{x}\"", "anybody can own a name"},
		{"public suffix", "\"{page}.github.io\"", "\"{page}.co.uk\"", "anybody can register"},
		{"capture in a wildcard", "\"{page}.github.io\"", "\"*.github.io\"", "literal labels"},
		{"ssh without a user", "ssh://git@git", "ssh://git", "ssh://user@name"},
		{"host that is not listed", "GET {region:regions}-run.example.com", "GET {region}-run.example.com", "is not among the hosts"},
		{"POST to a WebSocket", "GET api.example.com/live]\n    websocket", "POST api.example.com/live]\n    websocket", "is a GET"},
		{"messages without a WebSocket", "    match: [POST api.example.com/more]", "    messages: event\n    match: [POST api.example.com/more]", "need websocket: true"},
		{"messages of a form", "messages: event", "messages: form", "section of kind json"},
		{"method WEBSOCKET", "PUT api.example.com/raw]", "WEBSOCKET api.example.com/raw]", `"WEBSOCKET" is not a method`},
		{"feature with a body", "  item.fetch:\n", "  item.fetch:\n    body: none\n", "a feature has no body:"},
		{"feature with another resource", "  item.fetch:\n", "  item.fetch:\n    resource: \"{a}\"\n", "a feature's resource:"},
		{"via nothing", "via: act\n", "via: acts\n", `there is no operation "acts"`},
		{"resource-at without a form", "    resource: \"{channel}\"\n", "", "resource-at: needs resource:"},
		{"resource-at nowhere", "  live.tools:\n", "  item.more:\n    feature-of: [live]\n    resource: \"{a}\"\n    resource-at: a\n    allows: A.\n    does-not: B.\n  live.tools:\n", "item.more: resource-at: is in no body section"},
		{"resource of other words", "resource: \"{region}/{bucket}\"", "resource: \"{region}/{bucket}/{x}\"", "captures {x}"},
		{"resource with text", "resource: \"{region}/{bucket}\"", "resource: \"r-{region}/{bucket}\"", "resource: is {name}/{name}"},
		{"overlap", "when: {header: {X-Amz-Target: [Demo.Put*]}}", "when: {header: {X-Amz-Target: [Demo.*]}}", "both target-get and target-put"},
		{"overlap of a plain one", "    when: {header: {X-Amz-Target: [Demo.Put*]}}\n", "", "both target-get and target-put"},
		{"overlap of hosts", "GET {page}.github.io/**", "GET {bucket}.s3.{region}.example.com/{page}", "both bucket-read and page"},
		{"header spelling in when", "header: {X-Amz-Target: [Demo.Put*]}", "header: {x-amz-target: [Demo.Put*]}", "write the header as X-Amz-Target"},
		{"empty when", "when: {query: {Action: [Get*]}}", "when: {}", "when: names a header"},
		{"header spelling", "request-headers: [X-Demo-*", "request-headers: [x-demo-*", "write the header as X-Demo-*"},
		{"all headers", "request-headers: [X-Demo-*", "request-headers: [\"*\"", "write the header as"},
		{"user without Basic", "{header: X-Api-Key}", "{header: X-Api-Key, user: x}", "user: goes with scheme: Basic"},
		{"prefix elsewhere", "{header: X-Api-Key}", "{header: X-Api-Key, prefix: x}", "prefix: goes with header:"},
		{"subprotocol without prefix", ", prefix: demo-key.}", "}", "prefix: goes with header:"},
		{"set called path", "sets: {regions:", "sets: {path: [a], regions:", `can't be called "path"`},
		{"two long captures", "tree/{project:segments}.git/refs", "tree/{project:segments}/{x:segments}", "several segments"},
		{"capture twice", "{bucket}.s3.{region}.example.com/**", "{bucket}.s3.{region}.example.com/{bucket}", `captures "bucket" twice`},
		{"closed above all", "closed: {deep.in: [a, b]}", "closed: {deep.**: [a, b]}", "closed: names places"},
		{"unknown key in when", "when: {query:", "when: {cookie:", `unknown key "cookie"`},
		{"copy of nothing", "like: item, keys: [extra]", "like: items, keys: [extra]", "like: names a body section"},
	} {
		text := strings.Replace(string(data), c.old, c.new, 1)
		if c.old != "" && text == string(data) {
			t.Errorf("%s: nothing was replaced", c.name)
			continue
		}
		_, err := parseService("demo.yaml", []byte(text))
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
	// A whole class of operations can't have a credential that nobody knows of.
	noCredential := strings.Replace(small, "credential:\n  env: [SMALL_KEY]\n  placeholder: \"small-{hex:32}\"\n  slots: [{header: X-Api-Key}]\n", "", 1)
	noCredential = strings.Replace(noCredential, "    body: b\n", "    body: b\n    credential-required: true\n", 1)
	if _, err := parseService("small.yaml", []byte(noCredential)); err == nil || !strings.Contains(err.Error(), "credential-required: needs credential:") {
		t.Errorf("%v", err)
	}
}
