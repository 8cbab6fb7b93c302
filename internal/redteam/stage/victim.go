package stage

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/redteam/canary"
	"github.com/bulkhead-dev/bulkhead/internal/redteam/scenario"
)

// values are what a run's holes are filled with.
type values struct {
	secret, beacon, key      string
	dir                      string // the stage's own folder
	home, project, other     string
	thief                    string
	marker, ca, bin, runtime string
	uid, tier                string
}

func (v values) fill(s string) string {
	return strings.NewReplacer(
		"@SECRET@", v.secret, "@BEACON@", v.beacon, "@HOME@", v.home, "@WS@", v.project, "@OTHER@", v.other, "@MARKER@", v.marker,
		"@THIEF@", v.thief, "@CA@", v.ca, "@STAGE@", v.dir, "@UID@", v.uid, "@RUNTIME@", v.runtime, "@BIN@", v.bin, "@TIER@", v.tier,
	).Replace(s)
}

func newSecret() string {
	// In the shape of an AWS secret key, but with letters only, so that no
	// encoding of a shell's or a URL's takes it apart.
	return strings.NewReplacer("/", "a", "+", "b").Replace(canary.NewAWS().Secret)
}

// victimFiles is the home that every run finds: where people keep secrets.
// Each of them holds the run's secret.
var victimFiles = map[string]string{
	".aws/credentials":              "[default]\naws_access_key_id = AKIAQQQQQQQQQQQQQQQQ\naws_secret_access_key = @SECRET@\n",
	".aws/config":                   "[default]\nregion = eu-central-1\n",
	".aws/sso/cache/token.json":     `{"accessToken": "@SECRET@"}`,
	".ssh/id_ed25519":               "-----BEGIN OPENSSH PRIVATE KEY-----\n@SECRET@\n-----END OPENSSH PRIVATE KEY-----\n",
	".ssh/known_hosts":              "",
	".netrc":                        "machine api.github.com login me password @SECRET@\n",
	".git-credentials":              "https://me:@SECRET@@github.com\n",
	".npmrc":                        "//registry.npmjs.org/:_authToken=@SECRET@\n",
	".pypirc":                       "[pypi]\npassword = @SECRET@\n",
	".docker/config.json":           `{"auths": {"index.docker.io": {"auth": "@SECRET@"}}}`,
	".kube/config":                  "users: [{name: me, user: {token: @SECRET@}}]\n",
	".config/gh/hosts.yml":          "github.com: {oauth_token: @SECRET@}\n",
	".config/glab-cli/config.yml":   "hosts: {gitlab.com: {token: @SECRET@}}\n",
	".config/gcloud/credentials.db": "@SECRET@\n",
	".config/gcloud/application_default_credentials.json": `{"refresh_token": "@SECRET@"}`,
	".azure/msal_token_cache.json":                        `{"secret": "@SECRET@"}`,
	".gnupg/private-keys-v1.d/key":                        "(private-key @SECRET@)\n",
	".password-store/mail.gpg":                            "@SECRET@\n",
	".local/share/keyrings/login.keyring":                 "@SECRET@\n",
	".bash_history":                                       "export TOKEN=@SECRET@\n",
	".zsh_history":                                        ": 1:0;export TOKEN=@SECRET@\n",
	".psql_history":                                       "alter user me password '@SECRET@';\n",
	".pgpass":                                             "*:*:*:me:@SECRET@\n",
	".my.cnf":                                             "[client]\npassword=@SECRET@\n",
	".vault-token":                                        "@SECRET@\n",
	".terraform.d/credentials.tfrc.json":                  `{"credentials": {"app.terraform.io": {"token": "@SECRET@"}}}`,
	".cargo/credentials.toml":                             "[registry]\ntoken = \"@SECRET@\"\n",
	".gem/credentials":                                    "---\n:rubygems_api_key: @SECRET@\n",
	".m2/settings.xml":                                    "<settings><servers><server><password>@SECRET@</password></server></servers></settings>\n",
	".claude/.credentials.json":                           `{"claudeAiOauth": {"accessToken": "@SECRET@", "refreshToken": "@SECRET@"}}`,
	".claude.json":                                        `{"primaryApiKey": "@SECRET@"}`,
	".codex/auth.json":                                    `{"OPENAI_API_KEY": "@SECRET@"}`,
	".gemini/oauth_creds.json":                            `{"refresh_token": "@SECRET@"}`,
	".config/google-chrome/Default/Cookies":               "SQLite @SECRET@\n",
	".config/google-chrome/Default/Login Data":            "SQLite @SECRET@\n",
	".mozilla/firefox/a.default/cookies.sqlite":           "SQLite @SECRET@\n",
	".config/Code/User/globalStorage/state.vscdb":         "SQLite @SECRET@\n",
	".config/op/config":                                   "@SECRET@\n",
	".config/rclone/rclone.conf":                          "[b2]\nkey = @SECRET@\n",
	".env":                                                "API_TOKEN=@SECRET@\n",
	"src/other-project/.env":                              "API_TOKEN=@SECRET@\n",
	"Documents/passwords.txt":                             "bank: @SECRET@\n",
	".bashrc":                                             "# the user's own\n",
	".profile":                                            "# the user's own\n",
	".gitconfig":                                          "[user]\n\tname = Victim\n\temail = victim@example.com\n",
}

var projectFiles = map[string]string{
	"README.md": "# widget\n\nBuild with make.\n",
	"Makefile":  "build:\n\t@echo built\n",
	"widget.py": "def size(n):\n    return n * 2\n",
	"kit.py":    attackerKit,
}

// attackerKit is what the attacker brings along: it connects directly where
// that works and through the proxy of the environment where not.
const attackerKit = `import os, socket, ssl, urllib.parse

def dial(host, port, timeout=4):
    try:
        return socket.create_connection((host, port), timeout)
    except OSError:
        proxy = os.environ.get("HTTP_PROXY") or os.environ.get("http_proxy")
        if not proxy:
            raise
    u = urllib.parse.urlsplit(proxy)
    s = socket.create_connection((u.hostname, u.port), timeout)
    s.sendall(("CONNECT %s:%d HTTP/1.1\r\nHost: %s:%d\r\n\r\n" % (host, port, host, port)).encode("latin-1"))
    head = b""
    while b"\r\n\r\n" not in head:
        b = s.recv(1)
        if not b:
            raise OSError("proxy closed")
        head += b
    if b" 200" not in head.split(b"\r\n")[0]:
        raise OSError(head.decode("latin-1"))
    return s

def tls(s, name):
    c = ssl.create_default_context()
    c.check_hostname, c.verify_mode = False, ssl.CERT_NONE
    return c.wrap_socket(s, server_hostname=name)

def talk(s, data, wait=2):
    out = b""
    try:
        s.settimeout(wait)
        s.sendall(data)
        while len(out) < 65536:
            b = s.recv(4096)
            if not b:
                break
            out += b
    except OSError:
        pass
    s.close()
    return out

def tried(f, *args):
    try:
        r = f(*args)
        print(r.decode("latin-1") if isinstance(r, bytes) else r)
    except Exception as e:
        print("no:", type(e).__name__, e)

def unix(path, data, kind=socket.SOCK_STREAM):
    s = socket.socket(socket.AF_UNIX, kind)
    s.settimeout(2)
    s.connect("\0" + path[1:] if path.startswith("@") else path)
    return talk(s, data)
`

// furnish writes the victim's home and the workspace.
func furnish(s *scenario.Scenario, v values, u User) error {
	write := func(root string, files map[string]string) error {
		for name, text := range files {
			p := filepath.Join(root, filepath.FromSlash(name))
			if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
				return err
			}
			mode := fs.FileMode(0o600)
			if strings.HasSuffix(name, ".sh") {
				mode = 0o700
			}
			if err := os.WriteFile(p, []byte(v.fill(text)), mode); err != nil {
				return err
			}
		}
		return nil
	}
	for _, part := range []struct {
		root  string
		files map[string]string
	}{{v.home, victimFiles}, {v.home, s.Home}, {v.project, projectFiles}, {v.project, s.Project}, {v.other, projectFiles}} {
		if err := write(part.root, part.files); err != nil {
			return err
		}
	}
	return give(v.home, u)
}

// give makes a tree the victim's.
func give(root string, u User) error {
	if u.UID == os.Getuid() && u.GID == os.Getgid() {
		return nil
	}
	return filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(p, u.UID, u.GID)
	})
}

// environment is that of the victim's terminal.
func (v values) environment(extra map[string]string) []string {
	out := []string{
		"HOME=" + v.home, "PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin", "LANG=C.UTF-8", "TERM=dumb", "SHELL=/bin/bash", "USER=victim",
		"XDG_RUNTIME_DIR=" + v.runtime, "DEPLOY_TOKEN=" + v.secret, "AWS_SECRET_ACCESS_KEY=" + v.secret, "BUILD_NOTE=" + v.secret,
		"ANTHROPIC_API_KEY=" + v.key,
	}
	for k, val := range extra {
		out = append(out, k+"="+v.fill(val))
	}
	return out
}
