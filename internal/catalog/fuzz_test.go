package catalog

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/hostport"
)

// slowFeatures is the reference: it decodes the whole body into Go values and
// walks them, with no stream, no index and no early end.
func slowFeatures(b *bodySpec, v any, path []string, opaque bool, use func(op string)) {
	match := func(at []string) bool { return placeMatch(at, path) }
	for _, places := range b.opaque {
		opaque = opaque || slices.ContainsFunc(places, match)
	}
	if list, ok := v.([]any); ok {
		for _, e := range list {
			slowFeatures(b, e, path, opaque, use)
		}
		return
	}
	object, isObject := v.(map[string]any)
	s, isString := v.(string)
	if t, isBool := v.(bool); isBool {
		s, isString = strconv.FormatBool(t), true
	}
	// A string in the place of an opaque object is judged like any string.
	inside := opaque && isObject || len(path) > 0 && opaqueAbove(b, path)
	if !inside && v != nil {
		for _, rules := range b.rules {
			for _, r := range rules {
				if !match(r.at) {
					continue
				}
				if r.present != "" {
					use(r.present)
					continue
				}
				best, op, known := -1, b.otherwise, false
				for g, o := range r.values {
					if isString && (g == s || globMatch(g, s) && len(g) > best) {
						best, op, known = len(g), o, true
						if g == s {
							break
						}
					}
				}
				if op != "" || !known {
					use(op)
				}
			}
		}
	}
	for _, u := range b.unless {
		if len(path) == 0 && !slices.ContainsFunc(u.keys, func(k string) bool { return stated(object[k]) }) {
			use(u.op)
		}
	}
	for k, e := range object {
		if !inside {
			for _, c := range b.closed {
				if placeMatch(c.at, path) && !c.keys[k] {
					use(b.otherwise)
				}
			}
		}
		slowFeatures(b, e, slices.Concat(path, []string{k}), opaque, use)
	}
}

func stated(v any) bool {
	if list, ok := v.([]any); ok {
		return slices.ContainsFunc(list, stated)
	}
	return v != nil
}

func opaqueAbove(b *bodySpec, path []string) bool {
	for i := 1; i < len(path); i++ {
		for _, places := range b.opaque {
			if slices.ContainsFunc(places, func(at []string) bool { return placeMatch(at, path[:i]) }) {
				return true
			}
		}
	}
	return false
}

func FuzzBodyFeatures(f *testing.F) {
	for _, s := range []string{
		`{"model":"c","messages":[{"content":[{"type":"image","source":{"type":"url"}}]}],"tools":[{"type":"web_fetch_1"}]}`,
		`{"messages":[{"content":[{"input":{"type":"url"},"content":[{"source":{"url":1}}]}]}],"mcp_servers":[[{}]],"zzz":1}`,
		`{"tools":{"type":{"type":"mcp"}},"container":null,"thread":false}`,
		`{"name":"n","private":[null]}`, `{"name":"n","visibility":{}}`,
		`{"a":1,"a":2}`, `{"Type":1}`, `{"requests":[{"params":{"tools":[{"type":"web_fetch_1"}]}}]}`,
		`{"input":[{"image_url":"data:x"},{"image_url":"http://x"},{"type":"mcp"}]}`,
		strings.Repeat(`{"a":`, 130) + "1" + strings.Repeat("}", 130), "\ufeff{}", "{}{}", `{"model":"` + "\xff" + `"}`, `{"\ud800":1}`,
	} {
		f.Add([]byte(s))
	}
	cat := embedded(f)
	var bodies []*bodySpec
	for _, name := range []string{"anthropic", "openai", "huggingface"} {
		svc, _ := cat.Service(name)
		for _, b := range svc.bodies {
			if b.kind == "json" {
				bodies = append(bodies, b)
			}
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, b := range bodies {
			contents, err := b.scan(data, &Operation{})
			uses := contents.Uses
			if err != nil {
				if len(uses) > 0 {
					t.Fatal("features beside an error")
				}
				continue
			}
			var v map[string]any
			if err := json.Unmarshal(data, &v); err != nil {
				t.Fatalf("accepted what encoding/json refuses: %v", err)
			}
			want := map[string]bool{}
			slowFeatures(b, v, nil, false, func(op string) { want[op] = true })
			for _, u := range uses {
				if !want[u.Operation] {
					t.Fatalf("%s is not in the body, by the reference", u.Operation)
				}
				delete(want, u.Operation)
			}
			if len(want) > 0 {
				t.Fatalf("missed %v", want)
			}
		}
	})
}

// FuzzIdentify: no panic, only canonical paths, and whatever is found is an
// operation of the service whose resource has the template's form.
func FuzzIdentify(f *testing.F) {
	f.Add("GET", "github.com", "/acme/widgets.git/info/refs", "service=git-upload-pack", "", []byte(nil))
	f.Add("POST", "api.anthropic.com", "/v1/messages", "beta=true", "application/json", []byte(`{"model":"c"}`))
	f.Add("GET", "registry.npmjs.org", "/@a/b/-/c.tgz", "", "", []byte(nil))
	f.Add("GET", "proxy.golang.org", "/github.com/../x", "a=%zz", "x", []byte("x"))
	cat := embedded(f)
	f.Fuzz(func(t *testing.T, method, host, path, query, contentType string, body []byte) {
		h, _ := hostport.ParseHost(host)
		q, _ := url.ParseQuery(query)
		r := Request{Scheme: "https", Host: h, Port: 443, Method: method, Path: path, Query: q, Header: http.Header{"Content-Type": {contentType}, "Authorization": {contentType}}, Body: body}
		for _, name := range cat.Names() {
			svc, _ := cat.Service(name)
			op, resource, err := svc.Identify(r)
			svc.Credentials(r)
			if err != nil {
				continue
			}
			if CheckPath(path) != nil || !svc.HasHost("https", h, 443) {
				t.Fatalf("%s %s is %s of %s", host, path, op.Name, name)
			}
			if _, ok := svc.Operation(op.Name); !ok || len(op.FeatureOf) > 0 {
				t.Fatalf("%q is no operation", op.Name)
			}
			if resource != "" {
				if again, err := op.FoldResource(resource); err != nil || again != resource {
					t.Fatalf("%q is not a resource of %s: %v", resource, op.Name, err)
				}
			}
		}
	})
}

// FuzzCrate: what is judged of a crate is the object that a reader of cargo's form
// finds, however the body comes in.
func FuzzCrate(f *testing.F) {
	crate := func(object, archive string) []byte {
		b := binary.LittleEndian.AppendUint32(nil, uint32(len(object)))
		return append(binary.LittleEndian.AppendUint32(append(b, object...), uint32(len(archive))), archive...)
	}
	f.Add(crate(`{"name":"a","vers":"1.0.0"}`, "archive"), 7)
	f.Add(crate("", "archive"), 0)
	f.Add(crate(`{}`, ""), 9)
	f.Add([]byte{255, 255, 255, 255, 1}, 4)
	svc, _ := embedded(f).Service("crates-io")
	var b crateBody
	for _, s := range svc.bodies {
		if c, ok := s.reader.(crateBody); ok {
			b = c
		}
	}
	f.Fuzz(func(t *testing.T, body []byte, cut int) {
		object, err := b.head(body)
		if cut >= 0 && cut < len(body) {
			if early, err := b.head(body[:cut]); err == nil && early != nil && !bytes.Equal(early, object) {
				t.Fatalf("%q after %d bytes, and %q", early, cut, object)
			}
		}
		if err != nil || object == nil {
			return
		}
		r := bytes.NewReader(body)
		var n, size uint32
		binary.Read(r, binary.LittleEndian, &n)
		want := make([]byte, n)
		if _, err := io.ReadFull(r, want); err != nil || !bytes.Equal(want, object) {
			t.Fatalf("%q is judged, and %q read: %v", object, want, err)
		}
		if err := binary.Read(r, binary.LittleEndian, &size); err != nil || int64(size) > int64(b.filesLimit) || len(object) > b.limit {
			t.Fatalf("an archive of %d bytes behind %d: %v", size, len(object), err)
		}
	})
}
