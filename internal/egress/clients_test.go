package egress

import (
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// tool runs a real client of the sandbox: the relay is its proxy, the session's
// CA is what it trusts, and its home is empty.
func (r *rig) tool(t testing.TB, dir string, argv ...string) string {
	t.Helper()
	if _, err := exec.LookPath(argv[0]); err != nil {
		t.Skipf("NOT PROVEN: denials as %s shows them (not installed)", argv[0])
	}
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, r.ca.pem(), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = dir
	proxy := "http://" + r.proxy
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "LC_ALL=C", "http_proxy=" + proxy, "https_proxy=" + proxy, "HTTPS_PROXY=" + proxy,
		"CURL_CA_BUNDLE=" + ca, "GIT_SSL_CAINFO=" + ca, "NODE_EXTRA_CA_CERTS=" + ca, "npm_config_cafile=" + ca, "PIP_CERT=" + ca, "SSL_CERT_FILE=" + ca, "CARGO_HTTP_CAINFO=" + ca,
		"GIT_TERMINAL_PROMPT=0", "GIT_CONFIG_NOSYSTEM=1", "PIP_DISABLE_PIP_VERSION_CHECK=1", "PIP_CONFIG_FILE=/dev/null", "NO_UPDATE_NOTIFIER=1",
	}
	// Where pyenv and rustup keep what their shims start.
	for k, sub := range map[string]string{"PYENV_ROOT": ".pyenv", "RUSTUP_HOME": ".rustup"} {
		if home, err := os.UserHomeDir(); err == nil {
			if _, err := os.Stat(filepath.Join(home, sub)); err == nil {
				cmd.Env = append(cmd.Env, k+"="+filepath.Join(home, sub))
			}
		}
	}
	timer := time.AfterFunc(60*time.Second, func() { cmd.Process.Kill() })
	defer timer.Stop()
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Errorf("%s succeeded: %s", argv, out)
	}
	return string(out)
}

// gitServer is git's own server with one repository, /docs/r.git.
func gitServer(t testing.TB, names ...string) *upstream {
	t.Helper()
	root := t.TempDir()
	repo := filepath.Join(root, "docs", "r.git")
	for _, argv := range [][]string{
		{"git", "init", "-q", "--bare", repo}, {"git", "-C", repo, "config", "http.receivepack", "true"},
		{"sh", "-c", "cd " + root + " && git init -q w && cd w && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m x && git push -q " + repo + " HEAD:main && git -C " + repo + " symbolic-ref HEAD refs/heads/main"},
	} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Skipf("NOT PROVEN: denials as git shows them (%s: %v %s)", argv, err, out)
		}
	}
	dir, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	backend := filepath.Join(strings.TrimSpace(string(dir)), "git-http-backend")
	return serve(t, &cgi.Handler{Path: backend, Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=x"}}, names...)
}

// Each tool shows the words of the denial, and where the rule is.
func TestDenialsAsToolsShowThem(t *testing.T) {
	r := startRelay(t, func(c *Config) { c.Spec.Rules[5].Methods = []string{"GET"} }, gitServer(t, "readonly.test", "other.test"))
	dir := t.TempDir()
	type argv []string
	shows := func(what string, cmd argv, want ...string) {
		t.Helper()
		t.Run(what, func(t *testing.T) {
			out := r.tool(t, dir, cmd...)
			if strings.Contains(out, "requires `-Z sparse-registry`") {
				t.Skip("NOT PROVEN: denials as cargo shows them (this one is older than 1.68)")
			}
			for _, w := range want {
				if !strings.Contains(out, w) {
					t.Errorf("it does not show %q:\n%s", w, out)
				}
			}
			t.Logf("%s", out)
		})
	}
	shows("git clone, the first request refused", argv{"git", "clone", "-q", "https://readonly.test/other.git"}, "remote: bulkhead: ")
	shows("git clone, its POST refused", argv{"git", "clone", "-q", "https://readonly.test/docs/r.git"}, "bulkhead: ")
	shows("git clone over protocol 0", argv{"git", "-c", "protocol.version=0", "clone", "-q", "https://readonly.test/docs/r.git"}, "bulkhead: ")
	if out, err := exec.Command("sh", "-c", "cd "+dir+" && git init -q p && cd p && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m y").CombinedOutput(); err != nil {
		t.Fatal(string(out))
	}
	shows("git push, its POST refused", argv{"git", "-C", "p", "push", "https://readonly.test/docs/r.git", "HEAD:other"}, "bulkhead: ")
	shows("curl", argv{"curl", "-sS", "--fail-with-body", "https://readonly.test/x"}, "bulkhead: ", "policy.yaml:6")
	shows("curl --fail", argv{"curl", "-vfsS", "--http1.1", "https://readonly.test/x"}, "Forbidden by bulkhead: ")
	shows("npm", argv{"npm", "view", "--registry", "https://readonly.test/npm/", "left-pad"}, "bulkhead: ", "policy.yaml:6")
	shows("npm install", argv{"npm", "install", "--no-audit", "--registry", "https://readonly.test/npm/", "left-pad"}, "bulkhead: ")
	shows("pip, an index", argv{"pip3", "download", "--no-input", "--retries", "0", "--index-url", "https://readonly.test/simple/", "left-pad"}, "bulkhead: ", "policy.yaml:6")
	shows("pip, a file", argv{"pip3", "download", "--no-input", "--retries", "0", "https://readonly.test/left_pad-1.0.tar.gz"}, "bulkhead: ")
	os.MkdirAll(filepath.Join(dir, "crate", "src"), 0o755)
	os.MkdirAll(filepath.Join(dir, ".cargo"), 0o755)
	write := func(name, text string) { os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644) }
	write("crate/Cargo.toml", "[package]\nname = \"x\"\nversion = \"0.1.0\"\n[dependencies]\nserde = \"1\"\n")
	write("crate/src/main.rs", "fn main() {}\n")
	write(".cargo/config.toml", "[source.crates-io]\nreplace-with = \"x\"\n[source.x]\nregistry = \"sparse+https://readonly.test/index/\"\n[net]\nretry = 0\n")
	shows("cargo", argv{"cargo", "fetch", "--manifest-path", "crate/Cargo.toml"}, "bulkhead: ", "policy.yaml:6")
	os.MkdirAll(filepath.Join(dir, "apt", "lists", "partial"), 0o755)
	write("apt/sources", "deb [trusted=yes] https://readonly.test/debian stable main\n")
	shows("apt", argv{"apt-get", "update", "-oDir::Etc::sourcelist=" + dir + "/apt/sources", "-oDir::Etc::sourceparts=-", "-oDir::State::lists=" + dir + "/apt/lists", "-oDir::Cache=" + dir + "/apt",
		"-oAPT::Sandbox::User=root", "-oDebug::NoLocking=1", "-oAcquire::Retries=0", "-oAcquire::https::CAInfo=" + dir + "/ca.pem", "-oAcquire::http::Proxy=http://" + r.proxy, "-oAcquire::https::Proxy=http://" + r.proxy}, "Forbidden by bulkhead: ")
}
