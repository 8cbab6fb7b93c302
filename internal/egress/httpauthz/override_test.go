package httpauthz

import (
	"bytes"
	"encoding/json"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/iotest"
)

func watch(kind string, body io.Reader) ([]byte, error) {
	return watchIn(http.Header{"Content-Type": {kind}}, body)
}

func watchIn(h http.Header, body io.Reader) ([]byte, error) {
	q := &request{r: &http.Request{Method: "POST", Header: h}, c: &canonical{header: h}}
	r, _, err := q.watch(body, -1)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

const jsonKind = "application/json; charset=utf-8"

const formKind, partsKind = "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"

func part(disposition, content string) string {
	return "--x\r\nContent-Disposition: " + disposition + "\r\n\r\n" + content + "\r\n--x--\r\n"
}

// A method in a form is found however it is written and cut, and ends the body.
func TestMethodsInBodies(t *testing.T) {
	for kind, bodies := range map[string][]string{
		formKind: {
			"_method=DELETE", "a=b&_method=put", "a=b&_METHOD=put", "%5fmethod=DELETE", "%5Fm%65thod=DELETE", "a=b;_method=DELETE", "_method", "_method&a=b", "a=b&.method=DELETE", "a=b&+_method=DELETE", "a=b&%20.method=x", "[method=DELETE", "a&b&_method=x",
			"X-HTTP-Method-Override=PUT", "x_http_method=PUT", "_HttpMethod=PUT", strings.Repeat("a=b&", 10000) + "_method=PUT", strings.Repeat("+", 500) + "_method=PUT", strings.Repeat("%20", 500) + "_method=PUT",
		},
		partsKind: {
			part(`form-data; name="_method"`, "DELETE"), part(`form-data; name=_method`, "DELETE"), part(`form-data;name="_METHOD"`, "DELETE"), part("form-data;\r\n name=\"_method\"", "DELETE"), part(`form-data; filename="a"; name="_method"`, "DELETE"), part(`form-data; name*=UTF-8''_method`, "DELETE"), part(`form-data; name=".method"`, "DELETE"),
			strings.ReplaceAll(part(`form-data; name="_method"`, "DELETE"), "\r\n", "\n"), strings.Replace(part(`form-data; name="_method"`, "DELETE"), "Content-Disposition:", "content-disposition :", 1), part("form-data; x="+strings.Repeat("x", 3000)+"; name=_method", "DELETE"),
		},
		jsonKind: {
			`{"_method":"DELETE"}`, `{"a":{"b":[1,"x",{}]},"_method":"put"}`, ` { "\u005fm\u0065thod" : 1 }`, `{"a":"\"","_METHOD":1}`, `{"a":1,"a":2,"_method":3,"_method":4}`, "\xef\xbb\xbf" + `{"_method":1}`, `{}{"_method":1}`,
			`{"X-HTTP-Method-Override":1}`, `{"a":"` + strings.Repeat("x", 100000) + `","_method":1}`, `{"` + strings.Repeat("k", 1000) + `":1,"_method":1}`,
			`{_method:1}`, `{'_method':1}`, `{/*"*/"_method":1}`, "{\"a\":1,//\"\n\"_method\":1}", "\xff\xfe{\x00\"\x00", "{\x00\"\x00_", `{"a":1,#` + "\n" + `"_method":1}`, `{"\q":1}`, "{\"_met\nhod\":1}",
		},
	} {
		for _, body := range bodies {
			for how, r := range map[string]io.Reader{"at once": strings.NewReader(body), "byte by byte": iotest.OneByteReader(strings.NewReader(body)), "with its end": iotest.DataErrReader(strings.NewReader(body))} {
				if got, err := watch(kind, r); err == nil || err == io.EOF {
					t.Errorf("%s, %s: %.80q passes", how, kind, got)
				}
			}
		}
	}
	for kind, bodies := range map[string][]string{
		formKind:     {"", "a=_method", "a=b&method=x", "merge_method=squash&http=method", "a=%5Fmethod%3DDELETE", "x_method=1", "a==_method=1", `{"a":"` + strings.Repeat("json sent as a form", 100) + `"}`},
		partsKind:    {part(`form-data; name="method"`, "_method=DELETE"), part(`form-data; name="file"; filename="_method"`, `<input name="_method" value="delete">`), part(`form-data; name="a"`, `name="_method"`)},
		"text/plain": {"_method=DELETE", `{"_method":1}`},
		jsonKind:     {"", `{"a":{"_method":1},"b":["_method",{"_method":1}],"method":"_method"}`, `["_method"]`, `"_method"`, `{"a":"{\"_method\":1}"}`, `[{"_method":1}]`, "{\"a\":1}\n{\"b\":NaN}\n", "\x1e{}\n\x1e[]\n", `{"a":-1.5e+3,"ü":true,"\u00fc":null}`},
	} {
		for _, body := range bodies {
			if got, err := watch(kind, iotest.HalfReader(strings.NewReader(body))); err != nil || string(got) != body {
				t.Errorf("%s: %q became %.80q, %v", kind, body, got, err)
			}
		}
	}
}

// What passes holds no such parameter for the library's readers either, and is
// the body as it was.
func FuzzMethodsInBodies(f *testing.F) {
	for _, s := range []string{"a=b&_method=DELETE", "%5fmethod=x", "a=b", "&&=&_method", part(`form-data; name="_method"`, "x"), part(`form-data; name="a"; filename="b"`, "x"), part("form-data;\r\n name=\"_method\"", "")} {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	f.Fuzz(func(t *testing.T, body []byte, form bool) {
		kind := partsKind
		if form {
			kind = formKind
		}
		got, err := watch(kind, iotest.HalfReader(bytes.NewReader(body)))
		if err != nil {
			if bytes.Contains(bytes.ToLower(got), []byte("_method=")) {
				t.Fatalf("%q was passed on up to %q", body, got)
			}
			return
		}
		if !bytes.Equal(got, body) {
			t.Fatalf("%q became %q", body, got)
		}
		if form {
			values, _ := url.ParseQuery(string(body))
			for key := range values {
				if overridesMethod(key) && len(key) < maxParameter/3 {
					t.Fatalf("%q passes with the key %q", body, key)
				}
			}
			return
		}
		_, params, _ := mime.ParseMediaType(kind)
		for parts := multipart.NewReader(bytes.NewReader(body), params["boundary"]); ; {
			p, err := parts.NextRawPart()
			if err != nil {
				return
			}
			if overridesMethod(p.FormName()) && len(p.Header.Get("Content-Disposition")) < maxPartLine/2 {
				t.Fatalf("%q passes with the part %q", body, p.FormName())
			}
		}
	})
}

// Compressed, with two types, or with a type that readers take differently, a
// body is no way past.
func TestMethodsInDisguise(t *testing.T) {
	body := `{"_method":"DELETE"}`
	for name, h := range map[string]http.Header{
		"gzip":                  {"Content-Type": {jsonKind}, "Content-Encoding": {"gzip"}},
		"another coding":        {"Content-Type": {jsonKind}, "Content-Encoding": {"br"}},
		"two codings":           {"Content-Type": {jsonKind}, "Content-Encoding": {"gzip", "gzip"}},
		"two types":             {"Content-Type": {"text/plain", jsonKind}},
		"two types in one":      {"Content-Type": {"text/plain, application/json"}},
		"parameters twice":      {"Content-Type": {"application/json; a=b; a=b"}},
		"a type of its own":     {"Content-Type": {"application/vnd.api+JSON"}},
		"an unfinished type":    {"Content-Type": {"application/json;"}},
		"no coding by its name": {"Content-Type": {jsonKind}, "Content-Encoding": {"identity"}},
	} {
		text := body
		if name == "gzip" {
			text = zip(body)
		}
		if got, err := watchIn(h, strings.NewReader(text)); err == nil {
			t.Errorf("%s: %q passes", name, got)
		}
	}
	h := http.Header{"Content-Type": {jsonKind}, "Content-Encoding": {"gzip"}}
	if got, err := watchIn(h, strings.NewReader(zip(`{"a":1}`))); err != nil || string(got) != `{"a":1}` || h["Content-Encoding"] != nil {
		t.Errorf("gzip became %q with %v, %v", got, h, err)
	}
}

// Of JSON that a strict reader takes, exactly the bodies with such a key in an
// outermost object are refused.
func FuzzMethodsInJSON(f *testing.F) {
	for _, s := range []string{`{"_method":1}`, `{"a":[{"_method":1}],"b":"\\\""}`, `["_method"]`, `{}{"\u005fmethod":1}`, `{"a":1,"a":{}}`, "\xef\xbb\xbf{}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := watch(jsonKind, iotest.HalfReader(bytes.NewReader(body)))
		if err == nil && !bytes.Equal(got, body) {
			t.Fatalf("%q became %q", body, got)
		}
		found, long := false, false
		values := json.NewDecoder(bytes.NewReader(body))
		for {
			var raw json.RawMessage
			end := values.Decode(&raw)
			if end != nil {
				if err != nil && end == io.EOF && !found {
					t.Fatalf("%q is refused: %v", body, err)
				}
				break
			}
			var keys map[string]json.RawMessage
			_ = json.Unmarshal(raw, &keys)
			for k := range keys {
				found, long = found || overridesMethod(k), long || len(k) > maxJSONKey/6
			}
		}
		if err == nil && found && !long {
			t.Fatalf("%q passes", body)
		}
	})
}
