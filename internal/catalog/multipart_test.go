package catalog

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
)

const boundary = "bb"

// part is one part; head lines are joined by CRLF.
func part(head, value string) string { return "--bb\r\n" + head + "\r\n\r\n" + value + "\r\n" }

func field(name, value string) string {
	return part(`Content-Disposition: form-data; name="`+name+`"`, value)
}

func file(name, value string) string {
	return part(`Content-Disposition: form-data; name="`+name+`"; filename="f.bin"`+"\r\nContent-Type: application/octet-stream", value)
}

func multipartRequest(t testing.TB, contentType, body string) Request {
	return request(t, "POST https://api.example.com/upload", http.Header{"Content-Type": {contentType}}, []byte(body))
}

// read judges the body as the gateway does: what fits into the limit first,
// the rest through the filter. It returns what was forwarded.
func readUpload(t testing.TB, svc *Service, contentType, body string, step int) (uses []string, forwarded string, err error) {
	t.Helper()
	r := multipartRequest(t, contentType, body)
	op, resource, err := svc.Match(&r)
	if err != nil {
		t.Fatal(err)
	}
	need := svc.Need(op, r.Method)
	if len(r.Body) > need.HeadMax {
		r.Body = r.Body[:need.HeadMax]
	}
	c, err := svc.Read(op, resource, r)
	if err != nil {
		return nil, "", err
	}
	note := func(c Contents) {
		uses = nil
		for _, u := range c.Uses {
			uses = append(uses, u.Operation)
		}
		for _, f := range c.Credentials {
			uses = append(uses, f.Slot.String())
		}
	}
	note(c)
	var src io.Reader = strings.NewReader(body)
	if step > 0 {
		src = &steps{src, step}
	}
	out, err := io.ReadAll(c.Filter(src, func(c Contents) error {
		note(c)
		for _, u := range c.Uses {
			return errors.New("not granted: " + u.Operation)
		}
		return nil
	}))
	return uses, string(out), err
}

type steps struct {
	src io.Reader
	n   int
}

func (s *steps) Read(p []byte) (int, error) { return s.src.Read(p[:min(len(p), s.n)]) }

func TestMultipartIsStrict(t *testing.T) {
	svc := demo(t)
	const ct = "multipart/form-data; boundary=bb"
	good := field("purpose", "p") + file("file", "data\r\n-- bb\n") + field("tags[]", "1") + field("tags[]", "2") + "--bb--\r\n"
	disposition := func(d string) string { return part("Content-Disposition: "+d, "v") + "--bb--" }
	for _, c := range []struct{ name, contentType, body, want string }{
		{"good", ct, good, ""},
		{"quoted boundary", `multipart/form-data; boundary="bb"`, good, ""},
		{"no last line end", ct, strings.TrimSuffix(good, "\r\n"), ""},
		{"empty values", ct, field("purpose", "") + file("file", "") + "--bb--", ""},
		{"text/plain", ct, part("Content-Disposition: form-data; name=\"purpose\"\r\nContent-Type: text/plain; charset=UTF-8", "v") + "--bb--", ""},
		{"other case of header", ct, part("content-disposition: form-data; name=\"purpose\"", "v") + "--bb--", ""},

		{"two content types", ct + ", " + ct, good, "Content-Type"},
		{"no boundary", "multipart/form-data", good, "Content-Type"},
		{"boundary twice", ct + "; boundary=cc", good, "Content-Type"},
		{"boundary in pieces", "multipart/form-data; boundary*0=b; boundary*1=b", good, "Content-Type"},
		{"encoded boundary", "multipart/form-data; boundary*=utf-8''bb", good, "Content-Type"},
		{"another parameter", ct + "; charset=utf-7", good, "Content-Type"},
		{"escaped boundary", `multipart/form-data; boundary="b\b"`, good, "Content-Type"},
		{"boundary with a space", `multipart/form-data; boundary="b b"`, good, "boundary"},
		{"long boundary", "multipart/form-data; boundary=" + strings.Repeat("b", 71), good, "boundary"},
		{"mixed", "multipart/mixed; boundary=bb", good, "Content-Type"},
		{"form", "application/x-www-form-urlencoded", "purpose=p", "Content-Type"},
		{"preamble", ct, "x\r\n" + good, "begin with its boundary"},
		{"line before", ct, "\r\n" + good, "begin with its boundary"},
		{"epilogue", ct, good + "x", "follows its last boundary"},
		{"second body", ct, good + good, "follows its last boundary"},
		{"no end", ct, strings.TrimSuffix(good, "--bb--\r\n"), "ends before"},
		{"half an end", ct, strings.TrimSuffix(good, "-\r\n"), "ends before"},
		{"nothing", ct, "", "ends before"},
		{"no parts", ct, "--bb--\r\n", "no parts"},
		{"space behind the boundary", ct, strings.Replace(good, "--bb\r\n", "--bb \r\n", 1), "behind a boundary"},
		{"bare line feed", ct, strings.Replace(good, "\r\n--bb\r\n", "\n--bb\r\n", 1), "inside of a part"},
		{"bare line feed in a file", ct, file("file", "x\n--bb\r\nContent-Disposition: form-data; name=\"url\"\r\n\r\nu") + "--bb--", "inside of a part"},
		{"boundary in a value", ct, field("purpose", "a --bb b") + "--bb--", "inside of a part"},
		{"boundary in headers", ct, part("Content-Disposition: form-data; name=\"--bb\"", "v") + "--bb--", "in the headers"},
		{"longer boundary", ct, field("purpose", "p") + "--bbx\r\n", "behind a boundary"},
		{"no headers", ct, "--bb\r\n\r\nv\r\n--bb--", ""},
		{"no disposition", ct, part("Content-Type: text/plain", "v") + "--bb--", "Content-Disposition"},
		{"folded header", ct, part("Content-Disposition: form-data;\r\n name=\"purpose\"", "v") + "--bb--", "not Name: value"},
		{"disposition twice", ct, part("Content-Disposition: form-data; name=\"purpose\"\r\nContent-Disposition: form-data; name=\"url\"", "v") + "--bb--", "twice"},
		{"unknown header", ct, part("Content-Disposition: form-data; name=\"purpose\"\r\nX-A: b", "v") + "--bb--", "has the header X-A"},
		{"transfer encoding", ct, part("Content-Disposition: form-data; name=\"purpose\"\r\nContent-Transfer-Encoding: base64", "dg==") + "--bb--", "has the header Content-Transfer-Encoding"},
		{"filename*", ct, disposition(`form-data; name="file"; filename*=utf-8''x`), "more than name and filename"},
		{"filename and filename*", ct, disposition(`form-data; name="file"; filename="x"; filename*=utf-8''y`), "not plain"},
		{"name*", ct, disposition(`form-data; name*=utf-8''url`), "is not form-data"},
		{"two names", ct, disposition(`form-data; name="purpose"; name="url"`), "more than name"},
		{"bare name", ct, disposition(`form-data; name=purpose`), "not plain"},
		{"escape in a name", ct, disposition(`form-data; name="a\"b"`), "not plain"},
		{"attachment", ct, disposition(`attachment; name="purpose"`), "is not form-data"},
		{"order", ct, disposition(`form-data; filename="x"; name="file"`), "is not form-data"},
		{"no name", ct, disposition(`form-data; name=""`), "not plain"},
		{"file that is none", ct, file("purpose", "x") + "--bb--", "may not be a file"},
		{"nested", ct, part("Content-Disposition: form-data; name=\"file\"; filename=\"x\"\r\nContent-Type: multipart/mixed; boundary=cc", "--cc--") + "--bb--", "holds other parts"},
		{"JSON field", ct, part("Content-Disposition: form-data; name=\"purpose\"\r\nContent-Type: application/json", "{}") + "--bb--", "not text/plain"},
		{"other character set", ct, part("Content-Disposition: form-data; name=\"purpose\"\r\nContent-Type: text/plain; charset=utf-7", "x") + "--bb--", "not text/plain"},
		{"_charset_", ct, field("_charset_", "utf-7") + "--bb--", "_charset_"},
		{"not UTF-8", ct, field("purpose", "\xff") + "--bb--", "not text"},
		{"field twice", ct, field("purpose", "1") + field("purpose", "2") + "--bb--", "occurs twice"},
		{"other spelling", ct, field("Purpose", "1") + "--bb--", "another spelling"},
		{"token in a filename", ct, disposition(`form-data; name="file"; filename="` + token + `"`), "not plain"},
		{"many parts", ct, strings.Repeat(field("tags[]", ""), 1001) + "--bb--", "fields have more"},
	} {
		for _, step := range []int{0, 1} {
			_, out, err := readUpload(t, svc, c.contentType, c.body, step)
			switch {
			case c.name == "no headers":
				if err == nil {
					t.Errorf("%s: accepted", c.name)
				}
			case c.want == "" && (err != nil || out != c.body):
				t.Errorf("%s: %v, forwarded %q", c.name, err, out)
			case c.want != "" && (err == nil || !errors.Is(err, ErrBadBody) || !strings.Contains(err.Error(), c.want)):
				t.Errorf("%s: got %v, want %q", c.name, err, c.want)
			}
			if strings.Contains(out, token) {
				t.Errorf("%s: forwarded the token", c.name)
			}
		}
	}
}

// TestMultipartBehindAFile: a file longer than the limit, and what comes after
// it is still judged before it passes.
func TestMultipartBehindAFile(t *testing.T) {
	svc := demo(t)
	const ct = "multipart/form-data; boundary=bb"
	big := file("file", strings.Repeat("x\r\n-", 5000))
	for _, c := range []struct{ name, tail, want string }{
		{"harmless", field("purpose", "p") + "--bb--\r\n", ""},
		{"another file", file("file", strings.Repeat("y", 9000)) + "--bb--", ""},
		{"a feature", field("url", "https://evil.example/SECRET") + "--bb--", "not granted"},
		{"an unknown field", field("SECRET", "x") + "--bb--", "not granted"},
		{"many parts", strings.Repeat(field("tags[]", ""), 1001) + "--bb--", "more than 1000 parts"},
		{"another spelling", field("URL", "https://evil.example/SECRET") + "--bb--", "another spelling"},
		{"a file that is none", file("note", "SECRET") + "--bb--", "may not be a file"},
		{"long field", field("note", strings.Repeat("SECRET", 1000)) + "--bb--", "longer than"},
		{"no end", field("purpose", "p"), "ends before"},
		{"epilogue", "--bb--\r\nSECRET", "follows"},
	} {
		for _, step := range []int{0, 1, 7} {
			_, out, err := readUpload(t, svc, ct, big+c.tail, step)
			if c.want == "" && (err != nil || out != big+c.tail) {
				t.Errorf("%s: %v, %d bytes forwarded of %d", c.name, err, len(out), len(big+c.tail))
			}
			if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(out, "SECRET")) {
				t.Errorf("%s: got %v, want %q", c.name, err, c.want)
			}
		}
	}
	// Fields that don't fit are refused before anything is decided.
	if _, _, err := readUpload(t, svc, ct, field("note", strings.Repeat("x", 3000))+"--bb--", 0); !errors.Is(err, ErrBadBody) {
		t.Errorf("%v", err)
	}
}

// FuzzMultipart: what is accepted is what Go's reader sees too, part by part,
// and passes unchanged, however it is cut.
func FuzzMultipart(f *testing.F) {
	f.Add([]byte(field("purpose", "p")+file("file", "x\r\n--b")+"--bb--\r\n"), uint8(0))
	f.Add([]byte(file("file", strings.Repeat("-", 5000))+field("note", "n")+"--bb--"), uint8(3))
	f.Add([]byte("--bb\r\nContent-Disposition: form-data; name=\"note\"\r\n\r\n\r\n--bb--"), uint8(1))
	f.Add([]byte("--bb\r\nContent-Disposition: form-data; name=\"url\"\r\n\r\n\r\n\r\n--bb--\r\n"), uint8(2))
	svc := demo(f)
	f.Fuzz(func(t *testing.T, body []byte, step uint8) {
		_, out, err := readUpload(t, svc, "multipart/form-data; boundary=bb", string(body), 0)
		_, out2, err2 := readUpload(t, svc, "multipart/form-data; boundary=bb", string(body), int(step)+1)
		if (err == nil) != (err2 == nil) {
			t.Fatalf("cut differently: %v, %v", err, err2)
		}
		if !bytes.HasPrefix(body, []byte(out)) || !bytes.HasPrefix(body, []byte(out2)) {
			t.Fatal("changed on its way")
		}
		if err != nil {
			return
		}
		if out != string(body) || out2 != string(body) {
			t.Fatal("not all of it passed")
		}
		s := newPartScan(svc.bodies["upload"], boundary, nil)
		_, params, _ := mime.ParseMediaType("multipart/form-data; boundary=bb")
		ref := multipart.NewReader(iotest.OneByteReader(bytes.NewReader(body)), params["boundary"])
		n := 0
		for {
			p, err := ref.NextRawPart()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("accepted what Go refuses: %v", err)
			}
			n++
			data, _ := io.ReadAll(p)
			if !svc.bodies["upload"].isFile(p.FormName()) && bytes.Contains(data, []byte("--bb")) {
				t.Fatal("a field holds a boundary")
			}
		}
		if err := s.feed(body); err != nil || s.parts-1 != n {
			t.Fatalf("%d parts, by the reference %d (%v)", s.parts-1, n, err)
		}
	})
}

// FuzzForm: what is accepted has the fields that net/url reads.
func FuzzForm(f *testing.F) {
	for _, s := range []string{"title=a+b", "a%5Bb%5D=1&list[]=1&list[]=2", "title=%zz", "title=1;url=2", "=", "&", "title", "url=x&action=share"} {
		f.Add([]byte(s))
	}
	svc := demo(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		r := request(t, "POST https://api.example.com/form", http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}, body)
		r.HasBody = true
		op, _, err := svc.Identify(r)
		if err != nil {
			return
		}
		hr, _ := http.NewRequest("POST", "https://api.example.com/form", bytes.NewReader(body))
		hr.Header = r.Header
		if err := hr.ParseForm(); err != nil {
			t.Fatalf("accepted what net/http refuses: %v", err)
		}
		want := map[string]bool{}
		for k, v := range hr.PostForm {
			if len(v) > 1 && !strings.HasSuffix(k, "[]") {
				t.Fatalf("%q twice", k)
			}
			if !svc.bodies["form"].closed[0].keys[k] {
				want["item.unlisted"] = true
			}
			if k == "url" {
				want["item.fetch"] = true
			}
			if k == "action" && v[0] == "share" {
				want["item.share"] = true
			} else if k == "action" && v[0] != "read" {
				want["item.unlisted"] = true
			}
			if isSecretField(k) && v[0] != "" && len(op.Credentials) == 0 {
				t.Fatalf("%q is no credential", k)
			}
		}
		for _, u := range op.Uses {
			if !want[u.Operation] {
				t.Fatalf("%s is not in the form, by net/http", u.Operation)
			}
			delete(want, u.Operation)
		}
		if len(want) > 0 {
			t.Fatalf("missed %v", want)
		}
	})
}

// FuzzLines: every line is a value of its own for encoding/json as well, and a
// feature in any of them is found.
func FuzzLines(f *testing.F) {
	f.Add([]byte("{\"title\":\"t\"}\n{\"url\":\"u\"}\n"))
	f.Add([]byte("{}\r\n{}"))
	f.Add([]byte("{}\n\n{}"))
	svc := demo(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		r := request(t, "POST https://api.example.com/lines", http.Header{"Content-Type": {"application/x-ndjson"}}, body)
		r.HasBody = true
		op, _, err := svc.Identify(r)
		if err != nil {
			return
		}
		fetch := false
		for line := range bytes.Lines(body) {
			c, err := svc.bodies["item"].scan(bytes.TrimRight(line, "\r\n"), &Operation{})
			if err != nil {
				t.Fatalf("a line alone is refused: %v", err)
			}
			for _, u := range c.Uses {
				fetch = fetch || u.Operation == "item.fetch"
			}
		}
		found := false
		for _, u := range op.Uses {
			found = found || u.Operation == "item.fetch"
		}
		if fetch != found {
			t.Fatalf("item.fetch: %v, line by line %v", found, fetch)
		}
	})
}
