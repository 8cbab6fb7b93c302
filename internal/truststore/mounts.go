package truststore

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Trust is what makes the sandbox accept the session's authority.
type Trust struct {
	Mounts []vocabulary.Mount // to be appended to the plan, in order
	Env    []string           // KEY=VALUE
	// Roots is the host's own bundle (PEM), for verifying upstreams; empty if
	// the host has none.
	Roots []byte
	// Warnings are for the terminal: programs that will not trust the session.
	Warnings []string
}

// Where the sandbox's own copies stand, whatever the distribution.
const (
	caFile     = "/run/bulkhead-trust/ca.pem"
	bundleFile = "/run/bulkhead-trust/ca-bundle.pem"
)

const pemBegin = "-----BEGIN CERTIFICATE-----"

const why = "the session's certificate authority"

// bundles are the system bundles of the large distributions, the most usual
// first (the list of crypto/x509's root_linux.go, and update-ca-trust(8)).
var bundles = []string{
	"/etc/ssl/certs/ca-certificates.crt",                // Debian, Ubuntu, Arch, Alpine, NixOS
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // Fedora, RHEL
	"/etc/pki/tls/certs/ca-bundle.crt",
	"/etc/pki/tls/cert.pem",
	"/etc/ssl/ca-bundle.pem", // openSUSE
	"/etc/ssl/cert.pem",      // Alpine, Arch
	"/etc/ssl/certs/ca-bundle.crt",
	"/etc/ca-certificates/extracted/tls-ca-bundle.pem",
	"/var/lib/ca-certificates/ca-bundle.pem",
	"/usr/lib/ssl/cert.pem",
	"/usr/local/ssl/cert.pem",
	"/usr/local/etc/openssl/cert.pem",
}

// hashDirs are OpenSSL's directories of hashed names.
var hashDirs = []string{"/etc/ssl/certs", "/etc/pki/tls/certs", "/usr/lib/ssl/certs"}

// javaPlaces are patterns of a JDK's or JRE's home; %HOME is the user's.
var javaPlaces = []string{
	"/usr/lib/jvm/*", "/usr/lib64/jvm/*", "/usr/java/*", "/usr/local/java/*", "/usr/local/openjdk-*", "/opt/java/*", "/opt/jdk*", "/opt/openjdk*", "/opt/*/jbr",
	"%HOME/.sdkman/candidates/java/*", "%HOME/.jdks/*", "%HOME/.gradle/jdks/*", "%HOME/.asdf/installs/java/*", "%HOME/.local/share/mise/installs/java/*", "%HOME/.jabba/jdk/*",
}

// maxBundle bounds what is read of a bundle. Mozilla's list is 220 kB.
const maxBundle = 16 << 20

// For returns what to add to the plan. env is the environment that an image, if the
// plan has one, brings along.
func For(ca CA, plan []vocabulary.Mount, env []string) (Trust, error) {
	if len(plan) > 0 && plan[0].Kind == vocabulary.Root {
		javaHome := ""
		for _, kv := range env {
			if v, ok := strings.CutPrefix(kv, "JAVA_HOME="); ok {
				javaHome = v
			}
		}
		return forHost(ca, plan, "", javaHome)
	}
	home, _ := os.UserHomeDir()
	return forHost(ca, plan, home, os.Getenv("JAVA_HOME"))
}

type maker struct {
	ca   CA
	plan []vocabulary.Mount
	out  Trust
	done map[string]bool // targets
	// bundle is the system's first bundle, link-free.
	bundle string
}

func forHost(ca CA, plan []vocabulary.Mount, home, javaHome string) (Trust, error) {
	if len(ca.CertDER) == 0 || len(ca.PEM) == 0 {
		return Trust{}, fmt.Errorf("trust store: no certificate authority")
	}
	m := &maker{ca: ca, plan: plan, done: map[string]bool{}}
	if len(plan) > 0 && plan[0].Kind == vocabulary.Root {
		m.imaged()
		m.imageJava(plan[0].Source, javaHome)
	} else {
		m.hashed()
		if err := m.bundles(); err != nil {
			return Trust{}, err
		}
		m.java(home, javaHome)
	}
	m.data(caFile, ca.PEM)
	if m.bundle != "" {
		m.out.Mounts = append(m.out.Mounts, vocabulary.Mount{Kind: vocabulary.Symlink, Source: m.bundle, Target: bundleFile, Why: why})
	} else {
		m.data(bundleFile, ca.PEM)
		m.out.Warnings = append(m.out.Warnings, "this host has no bundle of root certificates: install ca-certificates")
	}
	m.out.Env = env(bundleFile)
	return m.out, nil
}

// visible reports whether the plan shows the host's own file at p, which holds
// no link.
func (m *maker) visible(p string) bool {
	kind, longest := vocabulary.Tmpfs, -1
	for _, e := range m.plan {
		if len(e.Target) >= longest && (p == e.Target || strings.HasPrefix(p, strings.TrimSuffix(e.Target, "/")+"/")) {
			kind, longest = e.Kind, len(e.Target)
		}
	}
	return kind.ShowsHost()
}

func (m *maker) data(target string, b []byte) {
	if m.done[target] {
		return
	}
	m.done[target] = true
	m.out.Mounts = append(m.out.Mounts, vocabulary.Mount{Kind: vocabulary.Data, Target: target, Data: b, Perm: 0o444, Why: why})
}

func (m *maker) withOurs(host []byte) []byte {
	b := make([]byte, 0, len(host)+len(m.ca.PEM)+1)
	// Ours comes first: a reader that stops at the first match is quick.
	b = append(append(b, m.ca.PEM...), host...)
	if len(host) > 0 && host[len(host)-1] != '\n' {
		b = append(b, '\n')
	}
	return b
}

// hashed puts our certificate into OpenSSL's directories: into the file of the
// root that shares our hash, or else into a private copy of the directory.
func (m *maker) hashed() {
	for _, d := range hashDirs {
		real, err := filepath.EvalSymlinks(d)
		if err != nil || m.done[real] || !m.visible(real) {
			continue
		}
		if m.beside(filepath.Join(real, hashName())) {
			continue
		}
		m.done[real] = true
		m.private(real)
	}
}

// beside adds our certificate to an existing file.
func (m *maker) beside(name string) bool {
	file, err := filepath.EvalSymlinks(name)
	if err != nil || !m.visible(file) {
		return false
	}
	host, err := readFile(file)
	if err != nil || !bytes.Contains(host, []byte(pemBegin)) {
		return false
	}
	m.data(file, m.withOurs(host))
	return true
}

// private shows a directory entry by entry in a private one, where our
// certificate can be added: a mount needs an existing name, and ours is new.
func (m *maker) private(real string) {
	list, err := os.ReadDir(real)
	if err != nil {
		return
	}
	add := func(k vocabulary.MountKind, source, target string) {
		m.out.Mounts = append(m.out.Mounts, vocabulary.Mount{Kind: k, Source: source, Target: target, Why: why})
	}
	m.out.Mounts = append(m.out.Mounts, vocabulary.Mount{Kind: vocabulary.Dir, Target: real, Why: why})
	for _, e := range list {
		at := filepath.Join(real, e.Name())
		switch {
		case e.Name() == hashName():
		case e.Type() == os.ModeSymlink:
			// A bundle that is a link becomes a file of ours at its end.
			if text, err := os.Readlink(at); err == nil && text != "" {
				add(vocabulary.Symlink, text, at)
			}
		case (e.Type() == 0 || e.IsDir()) && m.visible(at):
			if m.isBundle(at) {
				continue
			}
			add(vocabulary.BindRO, at, at)
			for _, e := range m.plan { // what the plan masks below stays masked
				if strings.HasPrefix(e.Target, at+"/") {
					m.out.Mounts = append(m.out.Mounts, e)
				}
			}
		}
	}
	m.data(filepath.Join(real, hashName()), m.ca.PEM)
}

// isBundle reports a file that bundles will put there anyway.
func (m *maker) isBundle(at string) bool {
	return slices.ContainsFunc(bundles, func(b string) bool {
		real, err := filepath.EvalSymlinks(b)
		return err == nil && real == at
	})
}

// bundles replaces the end of every known bundle's name.
func (m *maker) bundles() error {
	for _, name := range bundles {
		real, err := filepath.EvalSymlinks(name)
		if err != nil || m.done[real] {
			continue
		}
		if !m.visible(real) && m.visible(filepath.Dir(real)) {
			continue // masked on purpose
		}
		host, err := readFile(real)
		if err != nil {
			if os.IsPermission(err) {
				continue
			}
			return fmt.Errorf("trust store: %w", err)
		}
		if len(m.out.Roots) == 0 && bytes.Contains(host, []byte(pemBegin)) {
			m.out.Roots, m.bundle = host, real
		}
		m.data(real, m.withOurs(host))
	}
	return nil
}

// imagePlaces are where the programs of an image look, whatever it has there.
var imagePlaces = []string{"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"}

// imaged is for a root that is not the host's system: the host's list, and the
// session's authority, stand in it in every usual place. No file of the image is
// read.
func (m *maker) imaged() {
	for _, name := range bundles {
		if host, err := readFile(name); err == nil && bytes.Contains(host, []byte(pemBegin)) {
			m.out.Roots = host
			break
		}
	}
	for _, p := range imagePlaces {
		m.data(p, m.withOurs(m.out.Roots))
	}
	m.data("/etc/ssl/certs/"+hashName(), m.ca.PEM)
	m.bundle = imagePlaces[0]
}

// Of an image so many JDKs are looked for, in folders of so many entries at most.
const (
	maxImageJDKs = 16
	maxImageDir  = 1000
)

// imageJava gives each JDK of an image the host's list and the session's authority.
// Of the image it looks at names only, and goes through no link: where one stands in
// the way, what is mounted would take its place.
func (m *maker) imageJava(root, javaHome string) {
	r, err := os.OpenRoot(root)
	if err != nil {
		return // what runs in it will say so
	}
	defer r.Close()
	var jdks []string
	for _, p := range javaPlaces {
		if !strings.HasPrefix(p, "%HOME") {
			jdks = append(jdks, folders(r, ".", p[1:])...)
		}
	}
	if path.IsAbs(javaHome) && path.Clean(javaHome) != "/" && !strings.ContainsRune(javaHome, '*') {
		jdks = append(jdks, folders(r, ".", path.Clean(javaHome)[1:])...)
	}
	var store []byte
	found := 0
	for _, jdk := range jdks {
		for _, rel := range []string{"lib/security", "jre/lib/security"} {
			for _, dir := range folders(r, jdk, rel) {
				at := path.Join(dir, "cacerts")
				if fi, err := r.Lstat(at); err != nil || fi.IsDir() || m.done["/"+at] || found == maxImageJDKs {
					continue
				}
				if store == nil {
					store = jksMake(append([][]byte{m.ca.CertDER}, pemCerts(m.out.Roots)...), time.Now())
				}
				found++
				m.data("/"+at, store)
			}
		}
	}
}

// folders lists those below base that a pattern names, element by element. None is
// a link, nor behind one.
func folders(r *os.Root, base, pattern string) (all []string) {
	first, rest, more := strings.Cut(pattern, "/")
	names := []string{first}
	if strings.ContainsRune(first, '*') {
		f, err := r.Open(base)
		if err != nil {
			return nil
		}
		list, _ := f.Readdirnames(maxImageDir)
		f.Close()
		slices.Sort(list)
		names = slices.DeleteFunc(list, func(n string) bool { ok, _ := path.Match(first, n); return !ok })
	}
	for _, n := range names {
		at := path.Join(base, n)
		fi, err := r.Lstat(at)
		switch {
		case err != nil || !fi.IsDir():
		case more:
			all = append(all, folders(r, at, rest)...)
		default:
			all = append(all, at)
		}
	}
	return all
}

// java replaces the cacerts file of each JDK that can be seen.
func (m *maker) java(home, javaHome string) {
	var jdks []string
	for _, p := range javaPlaces {
		if rest, ok := strings.CutPrefix(p, "%HOME"); ok {
			if !filepath.IsAbs(home) {
				continue
			}
			// Not a pattern of the user's: a home with a bracket is no set.
			jdks = append(jdks, glob(home, strings.TrimPrefix(rest, "/"))...)
			continue
		}
		jdks = append(jdks, glob("/", strings.TrimPrefix(p, "/"))...)
	}
	if filepath.IsAbs(javaHome) {
		jdks = append(jdks, javaHome)
	}
	var rootsDER [][]byte
	for _, jdk := range jdks {
		for _, rel := range []string{"lib/security/cacerts", "jre/lib/security/cacerts"} {
			real, err := filepath.EvalSymlinks(filepath.Join(jdk, rel))
			if err != nil || m.done[real] || !m.visible(real) {
				continue
			}
			data, err := readFile(real)
			if err != nil {
				continue
			}
			certs, err := javaCerts(data)
			if err != nil {
				m.out.Warnings = append(m.out.Warnings, fmt.Sprintf("%s has a kind that is not known; Java gets the system's roots", real))
				if rootsDER == nil {
					rootsDER = pemCerts(m.out.Roots)
				}
				certs = rootsDER
			}
			m.data(real, jksMake(append([][]byte{m.ca.CertDER}, certs...), time.Now()))
		}
	}
}

// glob lists base/pattern, where only pattern has patterns, element by element.
func glob(base, pattern string) []string {
	first, rest, more := strings.Cut(pattern, "/")
	var next []string
	if strings.ContainsRune(first, '*') {
		list, _ := os.ReadDir(base)
		for _, e := range list {
			if ok, _ := filepath.Match(first, e.Name()); ok {
				next = append(next, filepath.Join(base, e.Name()))
			}
		}
	} else {
		next = []string{filepath.Join(base, first)}
	}
	if !more {
		return next
	}
	var out []string
	for _, n := range next {
		out = append(out, glob(n, rest)...)
	}
	return out
}

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err == nil && (!st.Mode().IsRegular() || st.Size() > maxBundle) {
		err = fmt.Errorf("%s is no certificate store", name)
	}
	if err != nil {
		return nil, err
	}
	b := bytes.NewBuffer(make([]byte, 0, st.Size()+bytes.MinRead))
	_, err = b.ReadFrom(io.LimitReader(f, maxBundle))
	return b.Bytes(), err
}

// env names the bundle to every runtime that has a knob. Those that replace
// the list get host and session roots; those that add get the session's alone,
// because Node parses the file at every start.
func env(bundle string) []string {
	out := []string{
		"NODE_EXTRA_CA_CERTS=" + caFile, // Node, Bun, Electron, Yarn, npm
		"DENO_CERT=" + caFile,
		"DENO_TLS_CA_STORE=system,mozilla",
	}
	for _, name := range []string{
		"SSL_CERT_FILE",                      // OpenSSL, Go, rustls-native-certs, Ruby, httpx, uv
		"REQUESTS_CA_BUNDLE",                 // Python requests
		"CURL_CA_BUNDLE",                     // curl of conda and Homebrew
		"GIT_SSL_CAINFO",                     // git
		"PIP_CERT",                           // pip
		"CARGO_HTTP_CAINFO",                  // cargo
		"AWS_CA_BUNDLE",                      // AWS CLI and SDKs
		"NIX_SSL_CERT_FILE",                  // programs from nixpkgs
		"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",   // gRPC's C core
		"HTTPLIB2_CA_CERTS",                  // Google's Python clients
		"CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE", // gcloud
		"PERL_LWP_SSL_CA_FILE",               // Perl
		"HEX_CACERTS_PATH",                   // Elixir
		"BUNDLE_SSL_CA_CERT",                 // Bundler
		"COMPOSER_CAFILE",                    // PHP Composer
		"JULIA_SSL_CA_ROOTS_PATH",            // Julia
		"CODEX_CA_CERTIFICATE",               // Codex
	} {
		out = append(out, name+"="+bundle)
	}
	return out
}
