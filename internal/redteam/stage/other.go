package stage

import (
	"os"
	"path/filepath"
)

// Yardsticks are other sandboxes that scenarios can run in, to compare with.
// Each is set up as its own documents recommend for an agent that has to reach
// its model: docs/redteam.md says how.
func Yardsticks() []string { return []string{"bwrap"} }

// IsYardstick reports whether a tier is none of ours.
func IsYardstick(tier string) bool {
	for _, y := range Yardsticks() {
		if y == tier {
			return true
		}
	}
	return false
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
	for _, name := range []string{"HOME", "PATH", "LANG", "TERM", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE"} {
		for _, kv := range env {
			if len(kv) > len(name) && kv[:len(name)+1] == name+"=" {
				argv = append(argv, "--setenv", name, kv[len(name)+1:])
			}
		}
	}
	return append(argv, "--")
}
