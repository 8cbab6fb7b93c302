package gitwire

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

const (
	zero = "0000000000000000000000000000000000000000"
	one  = "1111111111111111111111111111111111111111"
	two  = "2222222222222222222222222222222222222222"
	caps = "\x00 report-status-v2 side-band-64k object-format=sha1 agent=git/2.39.5"
)

// pkt writes pkt-lines; "0000" and "0001" stand for themselves.
func pkt(lines ...string) []byte {
	var b bytes.Buffer
	for _, l := range lines {
		if l == "0000" || l == "0001" || l == "0002" {
			b.WriteString(l)
		} else {
			fmt.Fprintf(&b, "%04x%s", len(l)+4, l)
		}
	}
	return b.Bytes()
}

func refs(p Push) string {
	var out []string
	for _, u := range p.Updates {
		s := u.Ref
		if u.Deletes() {
			s = "-" + s
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

func TestReadPush(t *testing.T) {
	long := strings.Repeat("a", 64)
	for _, c := range []struct {
		name  string
		lines []string
		want  string
	}{
		{"one", []string{zero + " " + one + " refs/heads/x" + caps, "0000"}, "refs/heads/x"},
		{"newlines", []string{zero + " " + one + " refs/heads/x" + caps + "\n", one + " " + two + " refs/tags/v1\n", "0000"}, "refs/heads/x refs/tags/v1"},
		{"delete", []string{one + " " + zero + " refs/heads/x" + caps, "0000"}, "-refs/heads/x"},
		{"shallow", []string{"shallow " + one, "shallow " + two + "\n", zero + " " + one + " refs/heads/x" + caps, "0000"}, "refs/heads/x"},
		{"options", []string{zero + " " + one + " refs/heads/x" + caps + " push-options", "0000", "ci.skip", "0000"}, "refs/heads/x"},
		{"no options", []string{zero + " " + one + " refs/heads/x" + caps + " push-options", "0000", "0000"}, "refs/heads/x"},
		{"sha256", []string{strings.Repeat("0", 64) + " " + long + " refs/heads/x" + caps, "0000"}, "refs/heads/x"},
		{"nothing", []string{"0000"}, ""},
	} {
		head := pkt(c.lines...)
		p, n, err := ReadPush(append(slices.Clone(head), "PACK…"...))
		if err != nil || refs(p) != c.want || n != len(head) {
			t.Errorf("%s: got %q, %d of %d, %v", c.name, refs(p), n, len(head), err)
		}
		if p.Pack == (c.want == "" || strings.HasPrefix(c.want, "-")) {
			t.Errorf("%s: pack %v", c.name, p.Pack)
		}
		if (len(p.Options) > 0) != (c.name == "options") {
			t.Errorf("%s: options %q", c.name, p.Options)
		}
		// Any part of it is too short, never something else.
		for i := range head {
			if p, _, err := ReadPush(head[:i]); !errors.Is(err, ErrShort) || len(p.Updates) > 0 {
				t.Errorf("%s: %d of %d bytes are %v", c.name, i, len(head), err)
				break
			}
		}
	}
}

func TestReadPushRefuses(t *testing.T) {
	good := zero + " " + one + " refs/heads/x"
	many := []string{zero + " " + one + " refs/heads/first" + caps}
	for i := range MaxUpdates {
		many = append(many, fmt.Sprintf("%s %s refs/heads/%d", zero, one, i))
	}
	for name, lines := range map[string][]string{
		"capabilities later":       {good + caps, zero + " " + one + " refs/heads/y" + caps, "0000"},
		"hidden ref behind a NUL":  {good + "\x00report-status\x00refs/heads/main", "0000"},
		"unknown capability":       {good + "\x00report-status force-it", "0000"},
		"tab in capabilities":      {good + "\x00report-status\tpush-options", "0000"},
		"newline in a ref":         {zero + " " + one + " refs/heads/x\nrefs/heads/main" + caps, "0000"},
		"certificate":              {"push-cert" + caps, "certificate version 0.1\n", "0000"},
		"certificate plain":        {good + caps, "push-cert", "0000"},
		"delimiter ends":           {good + caps, "0001"},
		"response end ends":        {good + caps, "0002"},
		"the same ref twice":       {good + caps, one + " " + two + " refs/heads/x", "0000"},
		"HEAD":                     {zero + " " + one + " HEAD" + caps, "0000"},
		"not below refs":           {zero + " " + one + " heads/x" + caps, "0000"},
		"dots":                     {zero + " " + one + " refs/heads/../heads/main" + caps, "0000"},
		"dot part":                 {zero + " " + one + " refs/heads/.x" + caps, "0000"},
		"double slash":             {zero + " " + one + " refs/heads//x" + caps, "0000"},
		"slash at the end":         {zero + " " + one + " refs/heads/x/" + caps, "0000"},
		"wildcard":                 {zero + " " + one + " refs/heads/*" + caps, "0000"},
		"at brace":                 {zero + " " + one + " refs/heads/x@{1}" + caps, "0000"},
		"lock":                     {zero + " " + one + " refs/heads/main.lock" + caps, "0000"},
		"empty ref":                {zero + " " + one + " refs/" + caps, "0000"},
		"space in a ref":           {zero + " " + one + " refs/heads/x y" + caps, "0000"},
		"not UTF-8":                {zero + " " + one + " refs/heads/\xff" + caps, "0000"},
		"long ref":                 {zero + " " + one + " refs/heads/" + strings.Repeat("x", maxRef) + caps, "0000"},
		"capital object":           {zero + " " + strings.Repeat("A", 40) + " refs/heads/x" + caps, "0000"},
		"short object":             {zero + " " + one[1:] + " refs/heads/x" + caps, "0000"},
		"mixed objects":            {zero + " " + strings.Repeat("1", 64) + " refs/heads/x" + caps, "0000"},
		"two spaces":               {zero + "  " + one + " refs/heads/x" + caps, "0000"},
		"shallow only":             {"shallow " + one, "0000"},
		"shallow later":            {good + caps, "shallow " + one, "0000"},
		"shallow with more":        {"shallow " + one + " x", good + caps, "0000"},
		"too many":                 append(many, "0000"),
		"options with a control":   {good + "\x00push-options", "0000", "a\x1bb", "0000"},
		"options end by delimiter": {good + "\x00push-options", "0000", "a", "0001"},
		"capability with a value":  {good + "\x00push-options=1 nope=2", "0000"},
		"options of 300 KB":        {good + "\x00push-options", "0000", strings.Repeat("a", 60000), strings.Repeat("b", 60000), strings.Repeat("c", 60000), strings.Repeat("d", 60000), strings.Repeat("e", 60000), "0000"},
	} {
		if p, _, err := ReadPush(pkt(lines...)); err == nil || errors.Is(err, ErrShort) || len(p.Updates) > 0 {
			t.Errorf("%s: %v, %q", name, err, refs(p))
		}
	}
	for name, raw := range map[string]string{
		"capital length": "006A" + good + "refs/xx0000", "sign": "+034" + good, "x": "0x34", "empty line": "0004", "reserved": "0003",
		"too long": "fff1", "text": "hello", "gzip": "\x1f\x8b", "head too big": strings.Repeat(string(pkt("shallow "+one)), MaxHead/50),
	} {
		if _, _, err := ReadPush([]byte(raw)); err == nil || errors.Is(err, ErrShort) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A value does not make another capability of it.
	if p, _, err := ReadPush(pkt(good+"\x00push-options=1", "0000", "x", "0000")); err != nil || len(p.Options) != 1 {
		t.Errorf("push-options=1: %v, %v", p, err)
	}
}

func TestReadFetch(t *testing.T) {
	for _, c := range []struct {
		lines []string
		want  string
	}{
		{[]string{"command=ls-refs\n", "agent=git/2.39.5", "object-format=sha1", "0001", "peel\n", "0000"}, "2 ls-refs"},
		{[]string{"command=fetch", "0001", "want " + one, "0000"}, "2 fetch"},
		{[]string{"command=fetch", "0000"}, "2 fetch"},
		{[]string{"want " + one + " multi_ack_detailed no-done side-band-64k\n", "want " + two, "0000"}, "0 fetch"},
		{[]string{"want " + one + "\n", "0000"}, "0 fetch"},
		{[]string{"0000"}, "0 "},
		{[]string{"command=receive-pack", "0000"}, "!"},
		{[]string{"command=fetch", "command=push", "0000"}, "!"},
		{[]string{"command=fetch", "0002"}, "!"},
		{[]string{"0001"}, "!"},
		{[]string{"have " + one}, "!"},
		{[]string{"want refs/heads/main"}, "!"},
		{[]string{zero + " " + one + " refs/heads/x" + caps, "0000"}, "!"},
		{[]string{"command=fetch\x00x", "0000"}, "!"},
	} {
		head := pkt(c.lines...)
		f, _, err := ReadFetch(head)
		got := fmt.Sprintf("%d %s", f.Version, f.Command)
		if err != nil {
			got = "!"
			if errors.Is(err, ErrShort) {
				got = "short"
			}
		}
		if got != c.want {
			t.Errorf("%q: got %s, want %s", c.lines, got, c.want)
		}
	}
}

func TestRefPatterns(t *testing.T) {
	for _, c := range []struct {
		pattern, ref string
		want         bool
	}{
		{"refs/heads/agent/*", "refs/heads/agent/x", true},
		{"refs/heads/agent/*", "refs/heads/agent/x/y", true},
		{"refs/heads/agent/*", "refs/heads/agent", false},
		{"refs/heads/agent/*", "refs/heads/agent/", false},
		{"refs/heads/agent/*", "refs/heads/agents/x", false},
		{"refs/heads/agent/*", "refs/tags/agent/x", false},
		{"refs/heads/*", "refs/headsx", false},
		{"refs/heads/main", "refs/heads/main", true},
		{"refs/heads/main", "refs/heads/main2", false},
		{"refs/heads/main", "refs/heads/Main", false},
		{"refs/tags/v*-rc", "refs/tags/v1-rc", true},
		{"refs/tags/v*-rc", "refs/tags/v-rc", false},
	} {
		if RefMatch(c.pattern, c.ref) != c.want {
			t.Errorf("%s on %s", c.pattern, c.ref)
		}
	}
	for _, bad := range []string{"", "*", "heads/x", "refs/heads/*/*", "refs/heads/..", "refs/heads/a b", "refs/heads/?", "refs/heads/[a]", "refs/*.lock"} {
		if IsRefPattern(bad) {
			t.Errorf("%q is a pattern", bad)
		}
	}
}

func TestReadCommand(t *testing.T) {
	for line, want := range map[string]string{
		"git-upload-pack 'acme/widgets.git'":                 "git-upload-pack acme/widgets",
		"git-upload-pack '/acme/widgets.git'":                "git-upload-pack acme/widgets",
		"git upload-pack 'acme/widgets'":                     "git-upload-pack acme/widgets",
		"git-receive-pack 'group/sub/project.git/'":          "git-receive-pack group/sub/project",
		"git-receive-pack acme/widgets.git":                  "git-receive-pack acme/widgets",
		"git-upload-archive 'acme/widgets.git'":              "git-upload-archive acme/widgets",
		"git-lfs-authenticate acme/widgets.git download":     "git-lfs-authenticate acme/widgets download",
		"git-lfs-authenticate 'acme/widgets.git' upload":     "git-lfs-authenticate acme/widgets upload",
		"git-lfs-authenticate acme/widgets.git upload abcde": "!",
		"git-lfs-authenticate acme/widgets.git":              "!",
		"git-lfs-transfer acme/widgets.git upload":           "!",
		"": "!", " git-upload-pack 'a/b'": "!", "git-upload-pack": "!", "git-upload-pack ''": "!", "bash": "!", "git": "!", "git upload-pack": "!",
		"git-upload-pack 'a/b' ": "!", "git-upload-pack  'a/b'": "!", "git-upload-pack 'a/b' 'c/d'": "!", "git-upload-pack 'a/b'; id": "!", "git-upload-pack 'a/b';id": "!",
		"git-upload-pack '~user/repo.git'": "!", "git-upload-pack '/~/repo.git'": "!", "git-upload-pack ~/repo": "!", "git-upload-pack 'a/../b'": "!", "git-upload-pack 'a//b'": "!",
		"git-upload-pack '//a/b'": "!", "git-upload-pack './a/b'": "!", "git-upload-pack '--strict' 'a/b'": "!", "git-upload-pack '--help'": "!", "git-upload-pack '-c/x'": "!",
		"git-upload-pack 'a/b'\\''c'": "!", "git-upload-pack \"a/b\"": "!", "git-upload-pack $(id)": "!", "git-upload-pack `id`": "!", "git-upload-pack a\\/b": "!",
		"git-upload-pack 'a/b\n'": "!", "git-upload-pack\t'a/b'": "!", "git-upload-pack 'a/b' &": "!", "git -c x=y upload-pack 'a/b'": "!", "git-upload-pack 'a'b": "!",
		"git-shell -c \"git-upload-pack 'a/b'\"": "!", "/usr/bin/git-upload-pack 'a/b'": "!", "git-upload-pack 'a/b\x00'": "!", "git-upload-pack 'ä/b'": "!", "git-upload-pack '.git'": "!",
		"GIT-UPLOAD-PACK 'a/b'": "!", "git-upload-pack '" + strings.Repeat("a", maxCommand) + "'": "!",
	} {
		c, err := ReadCommand(line)
		got := strings.TrimSpace(c.Name + " " + c.Path + " " + c.Argument)
		if err != nil {
			got = "!"
		}
		if got != want {
			t.Errorf("%q: got %s (%v), want %s", line, got, err, want)
		}
	}
}

// forge is a real git server that keeps what clients send to it.
type forge struct {
	*httptest.Server
	dir    string
	mu     sync.Mutex
	bodies map[string][][]byte // by the last part of the path
}

func newForge(t testing.TB) *forge {
	t.Helper()
	f := &forge{dir: t.TempDir(), bodies: map[string][][]byte{}}
	execPath, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, "no body", 500)
			return
		}
		r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
		if r.Header.Get("Content-Encoding") == "gzip" {
			zr, err := gzip.NewReader(bytes.NewReader(body))
			if err == nil {
				body, err = io.ReadAll(zr)
			}
			if err != nil {
				http.Error(w, "bad gzip", 400)
				return
			}
		}
		f.mu.Lock()
		if r.Method == http.MethodPost {
			f.bodies[filepath.Base(r.URL.Path)] = append(f.bodies[filepath.Base(r.URL.Path)], body)
		}
		f.mu.Unlock()
		(&cgi.Handler{
			Path: filepath.Join(strings.TrimSpace(string(execPath)), "git-http-backend"),
			Env: []string{"GIT_PROJECT_ROOT=" + f.dir, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=x", "GIT_PROTOCOL=" + r.Header.Get("Git-Protocol"),
				"GIT_CONFIG_COUNT=3", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*", "GIT_CONFIG_KEY_1=receive.advertisePushOptions", "GIT_CONFIG_VALUE_1=true",
				"GIT_CONFIG_KEY_2=uploadpack.allowFilter", "GIT_CONFIG_VALUE_2=true"},
		}).ServeHTTP(w, r)
	}))
	t.Cleanup(f.Close)
	return f
}

func (f *forge) take(name string) [][]byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	b := f.bodies[name]
	delete(f.bodies, name)
	return b
}

func run(t testing.TB, dir string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command("git", append([]string{"-c", "init.defaultBranch=main", "-c", "advice.detachedHead=false", "-c", "gc.auto=0"}, args...)...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0",
		"GIT_AUTHOR_NAME=T", "GIT_AUTHOR_EMAIL=t@example.com", "GIT_COMMITTER_NAME=T", "GIT_COMMITTER_EMAIL=t@example.com"}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func refsOf(t testing.TB, dir string) map[string]string {
	t.Helper()
	out, err := run(t, dir, "for-each-ref", "--format=%(refname) %(objectname)")
	if err != nil {
		t.Fatal(out)
	}
	m := map[string]string{}
	for line := range strings.Lines(out) {
		ref, oid, _ := strings.Cut(strings.TrimSpace(line), " ")
		m[ref] = oid
	}
	return m
}

// TestRealPushes compares what the heads of real pushes say with what the
// server's git made of them.
func TestRealPushes(t *testing.T) {
	f := newForge(t)
	bare, work := filepath.Join(f.dir, "r.git"), t.TempDir()
	must := func(dir string, args ...string) {
		t.Helper()
		if out, err := run(t, dir, args...); err != nil {
			t.Fatalf("git %s: %s", strings.Join(args, " "), out)
		}
	}
	must(f.dir, "init", "-q", "--bare", bare)
	must(work, "init", "-q")
	must(work, "remote", "add", "origin", f.URL+"/r.git")
	for i := range 5 {
		must(work, "commit", "-q", "--allow-empty", "-m", fmt.Sprint(i))
		must(work, "branch", fmt.Sprintf("agent/%d", i))
		must(work, "tag", "-a", "-m", "t", fmt.Sprintf("v%d", i))
	}
	must(work, "notes", "add", "-m", "note")
	for _, args := range [][]string{
		{"main"}, {"main:refs/heads/agent/x", "main:refs/tags/light"}, {"--tags"}, {"--all"}, {"--atomic", "agent/1:a/b/c", "agent/2:ä/ü"},
		{"refs/notes/*:refs/notes/*"}, {"-o", "ci.skip", "-o", "a b=c", "main:with-options"}, {"--force", "agent/0:agent/x"}, {"--delete", "agent/x"},
		{"origin2", "main:one", ":a/b/c", "agent/3:two"}, {"--mirror"}, {"--signed=if-asked", "main:maybe-signed"}, {"main:refs/whatever/x"},
		{"--prune", "refs/heads/*:refs/heads/*"}, {"--no-thin", "main:nothin"}, {"main:main"}, {"-q", "agent/4:quiet"},
	} {
		if args[0] == "origin2" {
			args = args[1:]
		}
		before := refsOf(t, bare)
		out, err := run(t, work, append([]string{"push", "origin"}, args...)...)
		if err != nil && args[0] == "--mirror" || err != nil && !slices.Contains(args, "--mirror") {
			t.Errorf("git push %s: %s", strings.Join(args, " "), out)
		}
		after := refsOf(t, bare)
		said := map[string]string{}
		for _, body := range f.take("git-receive-pack") {
			p, n, err := ReadPush(body)
			if err != nil {
				t.Fatalf("push %q: %v in %q", args, err, body[:min(len(body), 300)])
			}
			for _, u := range p.Updates {
				said[u.Ref] = u.New
				if before[u.Ref] != strings.Trim(u.Old, "0") && before[u.Ref] != u.Old {
					t.Errorf("push %q: old of %s", args, u.Ref)
				}
			}
			if p.Pack != bytes.HasPrefix(body[n:], []byte("PACK")) || !p.Pack && n != len(body) {
				t.Errorf("push %q: pack %v, then %q", args, p.Pack, body[n:min(len(body), n+4)])
			}
			if (args[0] == "-o") != (len(p.Options) == 2) {
				t.Errorf("push %q: options %q", args, p.Options)
			}
		}
		for ref, oid := range after {
			if before[ref] != oid && said[ref] != oid {
				t.Errorf("push %q: the server set %s, the head says %q", args, ref, said[ref])
			}
		}
		for ref := range before {
			if after[ref] == "" && strings.Trim(said[ref], "0") != "" || after[ref] == "" && said[ref] == "" {
				t.Errorf("push %q: the server removed %s, the head says %q", args, ref, said[ref])
			}
		}
		for ref, oid := range said {
			if strings.Trim(oid, "0") != "" && after[ref] != oid {
				t.Errorf("push %q: the head says %s, the server has %q", args, ref, after[ref])
			}
		}
	}
	// From a shallow clone, with shallow lines.
	shallow := filepath.Join(work, "shallow")
	must(work, "clone", "-q", "--depth=1", f.URL+"/r.git", shallow)
	must(shallow, "commit", "-q", "--allow-empty", "-m", "s")
	f.take("git-receive-pack")
	must(shallow, "push", "-q", "origin", "HEAD:from-shallow")
	found := false
	for _, body := range f.take("git-receive-pack") {
		p, _, err := ReadPush(body)
		if err != nil {
			t.Fatal(err)
		}
		found = found || p.Shallow > 0 && refs(p) == "refs/heads/from-shallow"
	}
	if !found {
		t.Error("no push with shallow lines")
	}
}

// TestRealFetches reads what real git asks for, in each protocol version.
func TestRealFetches(t *testing.T) {
	f := newForge(t)
	bare, work := filepath.Join(f.dir, "r.git"), t.TempDir()
	for _, args := range [][]string{{"init", "-q", "--bare", bare}, {"init", "-q", "seed"}, {"-C", "seed", "commit", "-q", "--allow-empty", "-m", "a"}, {"-C", "seed", "push", "-q", bare, "HEAD:main"}} {
		if out, err := run(t, work, args...); err != nil {
			t.Fatal(out)
		}
	}
	for _, version := range []string{"0", "1", "2"} {
		for i, more := range [][]string{nil, {"--depth=1"}, {"--filter=blob:none"}, {"--mirror"}} {
			args := append([]string{"-c", "protocol.version=" + version, "clone", "-q", f.URL + "/r.git", fmt.Sprintf("c%s-%d", version, i)}, more...)
			if out, err := run(t, work, args...); err != nil {
				t.Fatal(out)
			}
			bodies := f.take("git-upload-pack")
			for _, b := range bodies {
				got, n, err := ReadFetch(b)
				if err != nil || n == 0 || (got.Version == 2) != (version == "2") || got.Command == "" {
					t.Errorf("version %s, %v: %v, %v in %q", version, more, got, err, b)
				}
			}
			if len(bodies) == 0 {
				t.Errorf("version %s, %v: nothing seen", version, more)
			}
		}
	}
}

func FuzzReadPush(f *testing.F) {
	f.Add(pkt(zero+" "+one+" refs/heads/x"+caps, "0000"))
	f.Add(pkt("shallow "+one, zero+" "+one+" refs/heads/x"+caps+" push-options", one+" "+zero+" refs/tags/y\n", "0000", "o", "0000"))
	f.Add([]byte("0000"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, n, err := ReadPush(b)
		if err != nil {
			if len(p.Updates) > 0 || n != 0 {
				t.Fatal("an answer beside an error")
			}
			return
		}
		if n > len(b) || n > MaxHead || len(p.Updates) > MaxUpdates {
			t.Fatal(n)
		}
		// The reference reads as git's receive-pack does: any NUL ends the text,
		// any packet but a line ends the list.
		var want []string
		for rest := b; ; {
			var size int
			fmt.Sscanf(string(rest[:4]), "%04x", &size)
			if size < 4 {
				break
			}
			line := strings.TrimSuffix(string(rest[4:size]), "\n")
			rest = rest[size:]
			if strings.HasPrefix(line, "shallow ") {
				continue
			}
			line, _, _ = strings.Cut(line, "\x00")
			want = append(want, line[len(line)-len(strings.SplitN(line, " ", 3)[2]):])
		}
		var got []string
		for _, u := range p.Updates {
			got = append(got, u.Ref)
			if !IsRef(u.Ref) {
				t.Fatal(u.Ref)
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%q, by the reference %q", got, want)
		}
		// Nothing behind the head matters.
		if q, m, err := ReadPush(append(slices.Clone(b[:n]), "0000PACK"...)); err != nil || m != n || refs(q) != refs(p) {
			t.Fatal("the head depends on what is behind it")
		}
	})
}

func FuzzReadFetch(f *testing.F) {
	f.Add(pkt("command=ls-refs\n", "agent=x", "0001", "peel", "0000"))
	f.Add(pkt("want "+one+" ofs-delta\n", "0000"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, n, err := ReadFetch(b); err == nil && (n == 0 || n > len(b)) || err != nil && n != 0 {
			t.Fatal(n, err)
		}
	})
}

// FuzzReadCommand compares with a shell: what is accepted are plain words to
// it as well.
func FuzzReadCommand(f *testing.F) {
	for _, s := range []string{"git-upload-pack 'acme/widgets.git'", "git upload-pack a/b", "git-lfs-authenticate a/b download", "git-upload-pack '~a/b'"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := ReadCommand(s)
		if err != nil {
			return
		}
		if strings.ContainsAny(s, "\"\\$`;&|<>()\n\t*?[]{}!#%") || strings.Contains(c.Path, "//") || strings.HasPrefix(c.Path, "/") || strings.Contains(c.Path, "..") && slices.Contains(strings.Split(c.Path, "/"), "..") {
			t.Fatalf("%q is %v", s, c)
		}
		again, err := ReadCommand(strings.TrimSpace(c.Name + " '" + c.Path + "' " + c.Argument))
		if err != nil || again != c {
			t.Fatalf("%q is %v, again %v, %v", s, c, again, err)
		}
	})
}
