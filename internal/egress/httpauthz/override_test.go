package httpauthz

import (
	"bytes"
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
	q := &request{r: &http.Request{Method: "POST", Header: http.Header{"Content-Type": {kind}}}}
	return io.ReadAll(q.watch(body))
}

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
		formKind:           {"", "a=_method", "a=b&method=x", "merge_method=squash&http=method", "a=%5Fmethod%3DDELETE", "x_method=1", "a==_method=1", `{"a":"` + strings.Repeat("json sent as a form", 100) + `"}`},
		partsKind:          {part(`form-data; name="method"`, "_method=DELETE"), part(`form-data; name="file"; filename="_method"`, `<input name="_method" value="delete">`), part(`form-data; name="a"`, `name="_method"`)},
		"application/json": {`{"_method":"DELETE"}`}, "text/plain": {"_method=DELETE"},
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
