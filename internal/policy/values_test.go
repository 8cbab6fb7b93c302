package policy

import (
	"strings"
	"testing"
	"time"

	catalogdata "github.com/bulkhead-dev/bulkhead/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
)

func TestCleanPath(t *testing.T) {
	for in, want := range map[string]string{
		".": ".", "./": ".", "a": "a", "./a/": "a", "a//b/./c": "a/b/c", "..": "..", "../": "..", "../../a": "../../a", "./../a": "../a",
		"/": "/", "//": "/", "/a/": "/a", "~": "~", "~/": "~", "~/.": "~", "~//a/": "~/a", "...": "...", "a..b": "a..b", "/a..": "/a..",
	} {
		got, p := cleanPath(in)
		if p != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", in, got, p, want)
		}
		if again, p := cleanPath(got); p != nil || again != got {
			t.Errorf("%q is not stable: %q, %v", got, again, p)
		}
	}
	for _, in := range []string{"~root", "~root/x", "$HOME", "${HOME}/x", "/..", "/a/..", "/a/../b", "~/..", "~/../x", "a/..", "a/../b", "../a/..", strings.Repeat("a", 4097)} {
		if got, p := cleanPath(in); p == nil {
			t.Errorf("%q is accepted as %q", in, got)
		}
	}
}

func TestResolvePath(t *testing.T) {
	for in, want := range map[string]string{
		"~": "/home/u", "~/a": "/home/u/a", "/x": "/x", ".": "/cwd/d", "a": "/cwd/d/a", "../a": "/cwd/a", "~x": "/cwd/d/~x",
	} {
		if got := ResolvePath(in, "/home/u", "/cwd/d"); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestExpandHome(t *testing.T) {
	if got := (EnvVar{Value: "${HOME}/a:${HOME}/b:$HOME:${HOM}"}).Expand("/h"); got != "/h/a:/h/b:$HOME:${HOM}" {
		t.Error(got)
	}
}

func TestSizesAndDurations(t *testing.T) {
	for in, want := range map[string]int64{"2GiB": 2 << 30, "512MiB": 512 << 20, "16777217B": 16<<20 + 1, "1048576KiB": 1 << 30, "1TiB": 1 << 40, "8388607TiB": 8388607 << 40, "1B": 1, "15MiB": 15 << 20} {
		got, p := parseSize(in)
		if p != nil || got != want {
			t.Errorf("%s: %d, %v", in, got, p)
		}
		if again, p := parseSize(sizeString(got)); p != nil || again != got {
			t.Errorf("%s comes back as %s", in, sizeString(got))
		}
	}
	for _, in := range []string{"", "2", "2G", "2GB", "2gib", "02GiB", "-2GiB", "+2GiB", "2.5GiB", "2 GiB", "0GiB", "GiB", "8388608TiB", "9223372036854775808B", "1iB", "2GiBB", "15MiB", "٢GiB"} {
		if got, p := parseMemory(in); p == nil {
			t.Errorf("%q is accepted as %d", in, got)
		}
	}
	for d, want := range map[time.Duration]string{time.Hour: "1h", 90 * time.Minute: "1h30m", time.Hour + time.Second: "1h0m1s", 30 * time.Second: "30s", 10 * time.Minute: "10m", 1500 * time.Millisecond: "1.5s"} {
		got := wallString(d)
		if again, p := parseWall(got); got != want || p != nil || again != d {
			t.Errorf("%v: %q comes back as %v", d, got, again)
		}
	}
}

func TestURLPatternMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, scheme, host, port, path string
		want                              bool
	}{
		{"https://a.example/3/**", "https", "a.example", "443", "/3/", true},
		{"https://a.example/3/**", "https", "A.example.", "443", "/3/x/y", true},
		{"https://a.example/3/**", "https", "a.example", "443", "/3", false},
		{"https://a.example/3/**", "https", "a.example", "443", "/33/x", false},
		{"https://a.example/3/**", "http", "a.example", "443", "/3/x", false},
		{"https://a.example/3/**", "https", "a.example", "8443", "/3/x", false},
		{"https://a.example/3/**", "https", "b.a.example", "443", "/3/x", false},
		{"https://a.example/3/**", "https", "a.example.evil.example", "443", "/3/x", false},
		{"http://a.example:8080/", "http", "a.example", "8080", "/", true},
		{"http://a.example:8080/", "http", "a.example", "8080", "/x", false},
		{"http://a.example:8080/", "http", "a.example", "80", "/", false},
		{"https://*.a.example/**", "https", "x.y.a.example", "443", "/", true},
		{"https://*.a.example/**", "https", "a.example", "443", "/", false},
		{"https://*.a.example/**", "https", "xa.example", "443", "/", false},
		{"https://a.example/v1/*/things", "https", "a.example", "443", "/v1/me/things", true},
		{"https://a.example/v1/*/things", "https", "a.example", "443", "/v1//things", true},
		{"https://a.example/v1/*/things", "https", "a.example", "443", "/v1/me/too/things", false},
		{"https://a.example/v1/*/things", "https", "a.example", "443", "/v1/me/things/", false},
		{"https://a.example/*.tgz", "https", "a.example", "443", "/x.tgz", true},
		{"https://a.example/*.tgz", "https", "a.example", "443", "/x/y.tgz", false},
		{"https://a.example/*a*b*", "https", "a.example", "443", "/xxaxxbxx", true},
		{"https://a.example/*a*b*", "https", "a.example", "443", "/xxbxxaxx", false},
		{"https://a.example/x", "https", "a.example", "443", "x", false},
		{"https://a.example/x", "https", "a.example", "443", "", false},
	} {
		u, err := ParseURLPattern(c.pattern)
		if err != nil {
			t.Fatal(err)
		}
		host, err := hostport.ParseHost(c.host)
		if err != nil {
			t.Fatal(err)
		}
		port, err := hostport.ParsePort(c.port)
		if err != nil {
			t.Fatal(err)
		}
		if got := u.Match(c.scheme, host, port, c.path); got != c.want {
			t.Errorf("%s matches %s://%s:%s%s: %v, want %v", c.pattern, c.scheme, c.host, c.port, c.path, got, c.want)
		}
	}
	if (URLPattern{}).Match("", hostport.Host{}, 0, "/") || (URLPattern{}).String() != "" {
		t.Error("the zero pattern matches")
	}
	slow := strings.Repeat("*a", 500)
	start := time.Now()
	if matchSegment(slow+"b", strings.Repeat("a", 100_000)) {
		t.Error("a pattern that ends in b matches")
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("a hostile path took %v", d)
	}
}

func TestLists(t *testing.T) {
	secrets, err := ParseSecrets(catalogdata.Secrets)
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]SecretPath{}
	for _, s := range secrets {
		have[s.Path] = s
		if s.Reason == "" || s.Pos.Line == 0 {
			t.Errorf("%+v", s)
		}
	}
	// The places that the phish and its kind go for.
	for _, want := range []string{"~/.aws", "~/.ssh", "~/.gnupg", "~/.config/gcloud", "~/.azure", "~/.kube", "~/.docker/config.json", "~/.netrc", "~/.git-credentials",
		"~/.npmrc", "~/.pypirc", "~/.cargo/credentials", "~/.cargo/credentials.toml", "~/.config/gh", "~/.claude", "~/.claude.json", "~/.codex", "~/.gemini",
		"~/.local/share/keyrings", "~/.mozilla", "~/.bash_history", "~/.zsh_history", "**/.env", "/etc/shadow*", "/run/docker.sock", "/run/user", "/tmp/.X11-unix", "/tmp/tmux-*", "/tmp/ssh-*"} {
		if _, ok := have[want]; !ok {
			t.Errorf("secrets.yaml lacks %s", want)
		}
	}
	protected, _, err := ParseProtected(catalogdata.Protected)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, p := range protected {
		names[p.Path] = p.Reason != ""
	}
	for _, want := range []string{".git/hooks", ".git/config", ".gitmodules", ".vscode", ".idea", "*.code-workspace", ".envrc", ".mcp.json", ".claude/settings.json",
		".claude/settings.local.json", ".claude/hooks", ".claude/commands", ".claude/agents", ".claude/skills", ".cursor", ".codex", ".gemini", ".opencode",
		"opencode.json", ".devcontainer", ".bashrc", ".zshenv", ".profile", ".npmrc", ".yarnrc.yml", "pyvenv.cfg", "bin/python", "site-packages/*.pth"} {
		if !names[want] {
			t.Errorf("protected.yaml lacks %s", want)
		}
	}
	for _, never := range []string{".git", ".git/HEAD", ".git/index", ".git/refs", ".git/objects", ".github/workflows", "package.json", "Makefile", ".env"} {
		if _, ok := names[never]; ok {
			t.Errorf("protected.yaml has %s, which an agent must be able to write", never)
		}
	}
}

func TestListErrors(t *testing.T) {
	_, err := ParseSecrets([]byte(`secrets:
  .aws: x
  ~/a/../b: x
  ~/a//: x
  "**/a/b": x
  "**/": x
  ~/**/b: x
  /a/[: x
  ~/x:
  ~/z: x
  ~/z: x
  /: x
  ~/: x
secret: {}
`))
	want := `secrets.yaml:1:1: sockets is missing
secrets.yaml:2:3: ".aws" is not a place (begin it with ~/ or /, or write **/NAME)
secrets.yaml:3:3: "a/../b" is not a clean path (no // . or .. in it, and * within one element only)
secrets.yaml:4:3: "a/" is not a clean path (no // . or .. in it, and * within one element only)
secrets.yaml:5:3: "**/a/b" is not a place (begin it with ~/ or /, or write **/NAME)
secrets.yaml:6:3: "**/" is not a place (begin it with ~/ or /, or write **/NAME)
secrets.yaml:7:3: "**/b" is not a clean path (no // . or .. in it, and * within one element only)
secrets.yaml:8:3: "a/[" is not a clean path (no // . or .. in it, and * within one element only)
secrets.yaml:9:7: the reason is empty (give it a value or remove the key)
secrets.yaml:11:3: key "~/z" stands here a second time, the first is at line 10 (keep one of the two)
secrets.yaml:12:3: "/" is not a place (begin it with ~/ or /, or write **/NAME)
secrets.yaml:13:3: "~/" is not a place (begin it with ~/ or /, or write **/NAME)
secrets.yaml:14:1: unknown key "secret" in the file (did you mean secrets?)`
	if err == nil || err.Error() != want {
		t.Errorf("got:\n%v", err)
	}
	for _, bad := range []string{"", "protected: {}\nx: 1\n", "protected: {/a: x}\n", "protected: {../a: x}\n", "protected: {~/a: x}\n", "protected: x\n", "other: {}\n", "protected: {a/: x}\n", "protected: {a: x}\n", "protected: {a: x}\nenvironments: {}\ninstalled: {a/b: x}\n", "protected: {a: x}\ninstalled: {a: x}\n"} {
		if _, _, err := ParseProtected([]byte(bad)); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func FuzzURLPattern(f *testing.F) {
	for _, s := range []string{"https://a.example/**", "http://*.a.example:8080/x/*/y", "https://a@b/", "https://[::1]/", "https://a.example/%2e%2e/"} {
		f.Add(s, "/x/y")
	}
	f.Fuzz(func(t *testing.T, s, path string) {
		u, err := ParseURLPattern(s)
		if err != nil {
			return
		}
		again, err := ParseURLPattern(u.String())
		if err != nil || again != u {
			t.Fatalf("%q: %q comes back as %q, %v", s, u, again, err)
		}
		u.Match("https", hostport.Host{}, 443, path)
		matchPath(u.Path(), path)
	})
}
