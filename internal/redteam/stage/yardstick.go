package stage

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/redteam/scenario"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// yardstick is another sandbox that scenarios can run in, to compare with. Each
// is set up as its own documents recommend for an agent that has to reach its
// model: docs/redteam.md says how.
type yardstick struct {
	name string
	// find says how it is started on this host, and which folders it needs.
	find func() (start, show []string, err error)
	// argv starts it; the agent's command line follows.
	argv func(y setting) ([]string, error)
	// far: it lets nothing reach this host's loopback, so the model has to be at
	// an address of the victim's network.
	far bool
}

// setting is what a yardstick is set up for.
type setting struct {
	values
	s            *scenario.Scenario
	start, env   []string
	project, dir string // dir: where its settings may lie
	model        string // address and port
}

var yardsticks = []yardstick{
	{name: "bwrap", find: func() (start, show []string, err error) { return nil, nil, nil }, argv: func(y setting) ([]string, error) { return y.bareBwrap(y.project, y.env), nil }},
	{name: "srt", find: findSRT, argv: setting.srt, far: true},
}

// Yardsticks are the names of the other sandboxes.
func Yardsticks() (names []string) {
	for _, y := range yardsticks {
		names = append(names, y.name)
	}
	return names
}

func yardstickOf(tier string) *yardstick {
	if i := slices.IndexFunc(yardsticks, func(y yardstick) bool { return y.name == tier }); i >= 0 {
		return &yardsticks[i]
	}
	return nil
}

// IsYardstick reports whether a tier is none of ours.
func IsYardstick(tier string) bool { return yardstickOf(tier) != nil }

// Unfound says why a yardstick can't be run on this host; "" if it can.
func Unfound(tier string) string {
	y := yardstickOf(tier)
	if y == nil {
		return ""
	}
	if y.far && !CanBePrivate(tier) {
		return "needs a machine of its own, which only root can set up"
	}
	if _, _, err := y.find(); err != nil {
		return err.Error()
	}
	return ""
}

func findSRT() (start, show []string, err error) {
	bin, err := exec.LookPath("srt")
	if err == nil {
		bin, err = filepath.EvalSymlinks(bin)
	}
	if err != nil {
		return nil, nil, errors.New("srt is not on PATH: make redteam-compare installs it")
	}
	root, _, ok := strings.Cut(bin, "/node_modules/")
	if !ok {
		return nil, nil, fmt.Errorf("%s is no npm package", bin)
	}
	for _, tool := range []string{"node", "socat", "rg", "bwrap"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, nil, fmt.Errorf("srt needs %s, which is not installed", tool)
		}
	}
	return []string{"node", bin}, []string{root + "/node_modules"}, nil
}

// YardstickVersion is what a yardstick says of itself; "" if nothing.
func YardstickVersion(tier string) string {
	y := yardstickOf(tier)
	if y == nil {
		return ""
	}
	start, _, err := y.find()
	if err != nil {
		return ""
	}
	if start == nil {
		start = []string{tier}
	}
	out, err := exec.Command(start[0], append(slices.Clone(start[1:]), "--version")...).Output()
	for line := range strings.Lines(string(out)) {
		if err == nil && strings.ContainsAny(line, "0123456789") {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// settings of srt, as far as they are used here.
type settings struct {
	Network struct {
		Allowed []string `json:"allowedDomains"`
		Denied  []string `json:"deniedDomains"`
	} `json:"network"`
	Files struct {
		DenyRead   []string `json:"denyRead"`
		AllowRead  []string `json:"allowRead"`
		AllowWrite []string `json:"allowWrite"`
		DenyWrite  []string `json:"denyWrite"`
	} `json:"filesystem"`
}

// srt has the same rules as the session beside it, as far as it has words for
// them: the home can't be read but for the policy's mounts, the workspace is
// written to as far as the policy says, of the network there is the model and
// what the policy grants. It gets named variables only.
func (y setting) srt() ([]string, error) {
	p, err := policy.Parse("policy.yaml", []byte(y.fill(y.s.Policy)))
	if err != nil {
		return nil, err
	}
	var s settings
	n, fs := &s.Network, &s.Files
	n.Allowed, n.Denied = []string{y.model}, []string{}
	fs.DenyRead, fs.AllowRead, fs.AllowWrite, fs.DenyWrite = []string{y.home}, []string{y.project}, []string{}, []string{}
	if p.Workspace.Mode != vocabulary.ReadOnly {
		fs.AllowWrite = append(fs.AllowWrite, y.project)
	}
	for _, m := range p.Mounts {
		path := policy.ResolvePath(m.Path, y.home, y.project)
		fs.AllowRead = append(fs.AllowRead, path)
		if m.Mode != vocabulary.ReadOnly {
			fs.AllowWrite = append(fs.AllowWrite, path)
		}
	}
	// A name of the victim's network leads to an address of the machine itself,
	// which srt refuses unless it is named too.
	add := func(host, address string) {
		for _, e := range []string{host, address} {
			if !slices.Contains(n.Allowed, e) {
				n.Allowed = append(n.Allowed, e)
			}
		}
	}
	for _, g := range p.Grants {
		if g.Service != "" {
			for _, host := range serviceHosts[g.Service] {
				add(host, corp4)
			}
			continue
		}
		_, host, _ := strings.Cut(g.HTTP, "://")
		if host, _, _ = strings.Cut(host, "/"); slices.Contains(thiefNames, host) {
			add(host, thief4)
		} else if host != "" {
			add(host, corp4)
		}
	}
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return nil, err
	}
	file := filepath.Join(y.dir, "srt.json")
	if err := os.WriteFile(file, text, 0o644); err != nil {
		return nil, err
	}
	return slices.Concat([]string{"/usr/bin/env", "-i"}, named(y.env), y.start, []string{"--settings", file, "--"}), nil
}

// serviceHosts are the names of services that scenarios grant.
var serviceHosts = map[string][]string{
	"github": {"github.com", "api.github.com", "uploads.github.com"}, "npm": {"registry.npmjs.org"}, "pypi": {"upload.pypi.org"},
	"aws-s3": {"s3.amazonaws.com", "bucket.s3.amazonaws.com"}, "sentry": {"sentry.io", "o1.ingest.sentry.io"}, "statsig": {"statsigapi.net"},
}

// named are the variables that a careful person lets in.
func named(env []string) (out []string) {
	for _, name := range []string{"HOME", "PATH", "LANG", "TERM", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE"} {
		for _, kv := range env {
			if strings.HasPrefix(kv, name+"=") {
				out = append(out, kv)
			}
		}
	}
	return out
}

// bareBwrap is bubblewrap as a careful person writes it by hand: system
// directories read-only, a private home and /tmp, the workspace writable, all
// namespaces but the network's, which the agent needs for its model, and no
// variables but the named ones.
func (v values) bareBwrap(project string, env []string) []string {
	argv := []string{"bwrap", "--unshare-all", "--share-net", "--die-with-parent", "--new-session", "--clearenv", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", v.home}
	for _, d := range []string{"/usr", "/etc", "/bin", "/sbin", "/lib", "/lib64", "/lib32", "/opt"} {
		st, err := os.Lstat(d)
		switch {
		case err != nil:
		case st.Mode()&os.ModeSymlink != 0:
			to, _ := os.Readlink(d)
			argv = append(argv, "--symlink", to, d)
		default:
			argv = append(argv, "--ro-bind", d, d)
		}
	}
	if real, err := filepath.EvalSymlinks("/etc/resolv.conf"); err == nil && real != "/etc/resolv.conf" {
		argv = append(argv, "--ro-bind", real, real)
	}
	argv = append(argv, "--ro-bind", filepath.Dir(v.bin), filepath.Dir(v.bin), "--ro-bind", filepath.Join(v.dir, "first"), filepath.Join(v.dir, "first"),
		"--ro-bind", filepath.Join(v.dir, "second"), filepath.Join(v.dir, "second"), "--bind", project, project, "--chdir", project)
	for _, kv := range named(env) {
		name, value, _ := strings.Cut(kv, "=")
		argv = append(argv, "--setenv", name, value)
	}
	return append(argv, "--")
}
