package process

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/ed25519"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// registries NAME: starts stand-ins for the public registries of seven kinds of
// packages, as true on the wire as their clients can tell, on one address of
// loopback; records requests in $WORK/NAME.log. Sets NAME_ADDR, NAME_CA,
// NAME_SUMDB (for GOSUMDB), NAME_UPSTREAMS (lines for upstreams:) and CLIENTS (see setClients). What would
// change something there is answered with success, so that only its record
// tells whether it arrived.
func cmdRegistries(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: registries NAME")
	}
	name := args[0]
	setClients(ts)
	log, err := os.OpenFile(filepath.Join(ts.Getenv("WORK"), name+".log"), os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	ts.Check(err)
	ts.Defer(func() { log.Close() })
	s := &shelf{log: log, oci: newImages(), things: map[string]thing{}}
	s.npm()
	s.pypi()
	s.crates()
	s.maven()
	s.debian()
	ts.Setenv(name+"_SUMDB", s.modules(ts))
	serveTLS(ts, name, registryHosts, false, s)
	var b strings.Builder
	for _, host := range registryHosts {
		fmt.Fprintf(&b, "  %s: {connect: %q, ca: %q}\n", host, ts.Getenv(name+"_ADDR"), ts.Getenv(name+"_CA"))
	}
	ts.Setenv(name+"_UPSTREAMS", b.String())
}

var registryHosts = []string{
	"registry.npmjs.org", "registry.yarnpkg.com", "pypi.org", "files.pythonhosted.org", "upload.pypi.org", "proxy.golang.org", "sum.golang.org",
	"index.crates.io", "static.crates.io", "crates.io", "repo.maven.apache.org", "ossrh-staging-api.central.sonatype.com", "deb.debian.org",
	"registry-1.docker.io", "auth.docker.io", "production.cloudflare.docker.com",
}

// shelf holds what can be had, by host and path.
type shelf struct {
	mu     sync.Mutex
	log    *os.File
	oci    *images
	things map[string]thing
}

type thing struct {
	contentType string
	body        []byte
}

func (s *shelf) put(url, contentType string, body []byte) { s.things[url] = thing{contentType, body} }

func (s *shelf) putJSON(url string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	s.put(url, "application/json", b)
}

func (s *shelf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, arrival := readBody(io.LimitReader(r.Body, 1<<20))
	line, _ := json.Marshal(seen{r.Proto, r.Method, r.Host, r.RequestURI, r.Header, body, arrival})
	s.mu.Lock()
	_, err := s.log.Write(append(line, '\n'))
	s.mu.Unlock()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	switch {
	case strings.HasSuffix(r.Host, ".docker.io") || r.Host == "production.cloudflare.docker.com":
		s.oci.ServeHTTP(w, r)
		return
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		io.WriteString(w, `{"ok":true,"success":true}`)
		return
	case r.Host == "repo.maven.apache.org" && mavenTree(w, r):
		return
	}
	t, ok := s.things[r.Host+r.URL.Path]
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", t.contentType)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(t.body))
}

// file is one member of an archive.
type file struct{ name, text string }

func tarGz(files ...file) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	t := tar.NewWriter(z)
	for _, f := range files {
		t.WriteHeader(&tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.text)), ModTime: time.Unix(1_700_000_000, 0)})
		io.WriteString(t, f.text)
	}
	t.Close()
	z.Close()
	return b.Bytes()
}

func zipped(files ...file) []byte {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, f := range files {
		w, _ := z.Create(f.name)
		io.WriteString(w, f.text)
	}
	z.Close()
	return b.Bytes()
}

// npm: a package that needs one of a scope.
func (s *shelf) npm() {
	add := func(name, archive string, pkg map[string]any, code string) {
		pkg["name"], pkg["version"] = name, "1.2.3"
		desc, _ := json.Marshal(pkg)
		tgz := tarGz([]file{{"package/package.json", string(desc)}, {"package/index.js", code}}...)
		short, long := sha1.Sum(tgz), sha512.Sum512(tgz)
		for _, host := range []string{"registry.npmjs.org/", "registry.yarnpkg.com/"} {
			path := host + name
			pkg["dist"] = map[string]any{"tarball": "https://" + path + "/-/" + archive, "shasum": fmt.Sprintf("%x", short),
				"integrity": "sha512-" + base64.StdEncoding.EncodeToString(long[:])}
			s.put(path+"/-/"+archive, "application/octet-stream", tgz)
			s.putJSON(path, map[string]any{"_id": name, "name": name, "dist-tags": map[string]any{"latest": "1.2.3"}, "versions": map[string]any{"1.2.3": pkg}})
		}
	}
	add("@acme/words", "words-1.2.3.tgz", map[string]any{}, "module.exports = 'installed by npm'\n")
	add("left-words", "left-words-1.2.3.tgz", map[string]any{"dependencies": map[string]any{"@acme/words": "^1.0.0"}}, "module.exports = require('@acme/words')\n")
}

// pypi: a wheel whose page is JSON (PEP 691), and one whose page is HTML (PEP 503).
func (s *shelf) pypi() {
	wheel := func(name, needs, code string) (string, []byte) {
		info := name + "-1.2.3.dist-info/"
		meta := "Metadata-Version: 2.1\nName: " + name + "\nVersion: 1.2.3\n" + needs
		files := []file{{name + ".py", code}, {info + "METADATA", meta}, {info + "WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}}
		record := info + "RECORD,,\n"
		for _, f := range files {
			sum := sha256.Sum256([]byte(f.text))
			record += fmt.Sprintf("%s,sha256=%s,%d\n", f.name, base64.RawURLEncoding.EncodeToString(sum[:]), len(f.text))
		}
		whl := name + "-1.2.3-py3-none-any.whl"
		data := zipped(append(files, file{info + "RECORD", record})...)
		s.put("files.pythonhosted.org/packages/aa/bb/"+whl, "application/octet-stream", data)
		return whl, data
	}
	name, data := wheel("left_words", "Requires-Dist: acme-words>=1\n", "from acme_words import words\n")
	s.put("pypi.org/simple/left-words/", "application/vnd.pypi.simple.v1+json", fmt.Appendf(nil,
		`{"meta":{"api-version":"1.0"},"name":"left-words","files":[{"filename":%q,"url":"https://files.pythonhosted.org/packages/aa/bb/%s","hashes":{"sha256":"%x"}}]}`,
		name, name, sha256.Sum256(data)))
	name, data = wheel("acme_words", "", "words = 'installed by pip'\n")
	s.put("pypi.org/simple/acme-words/", "text/html", fmt.Appendf(nil,
		"<!DOCTYPE html><html><body><a href=\"https://files.pythonhosted.org/packages/aa/bb/%s#sha256=%x\">%s</a></body></html>", name, sha256.Sum256(data), name))
}

// crates: a sparse index and one crate.
func (s *shelf) crates() {
	crate := tarGz(file{"left-words-1.2.3/Cargo.toml", "[package]\nname = \"left-words\"\nversion = \"1.2.3\"\nedition = \"2021\"\n"},
		file{"left-words-1.2.3/src/lib.rs", "pub const WORDS: &str = \"installed by cargo\";\n"})
	s.putJSON("index.crates.io/config.json", map[string]any{"dl": "https://static.crates.io/crates", "api": "https://crates.io"})
	s.put("index.crates.io/le/ft/left-words", "text/plain", fmt.Appendf(nil,
		`{"name":"left-words","vers":"1.2.3","deps":[],"cksum":"%x","features":{},"yanked":false}`+"\n", sha256.Sum256(crate)))
	s.put("static.crates.io/crates/left-words/1.2.3/download", "application/gzip", crate)
}

// maven: one package, which needs one of Debian's: as mvn itself does to deploy
// (mavenTree).
func (s *shelf) maven() {
	at := "repo.maven.apache.org/maven2/com/example/left-words/1.2.3/left-words-1.2.3"
	for ext, body := range map[string][]byte{
		".pom": []byte("<project><modelVersion>4.0.0</modelVersion><groupId>com.example</groupId><artifactId>left-words</artifactId><version>1.2.3</version>" +
			"<dependencies><dependency><groupId>org.codehaus.plexus</groupId><artifactId>plexus-utils</artifactId><version>debian</version></dependency></dependencies></project>"),
		".jar": zipped(file{"META-INF/MANIFEST.MF", "Manifest-Version: 1.0\n"}, file{"words.txt", "installed by mvn\n"}),
	} {
		s.put(at+ext, "application/octet-stream", body)
		s.put(at+ext+".sha1", "text/plain", fmt.Appendf(nil, "%x", sha1.Sum(body)))
	}
}

// mavenTree serves Debian's own repository of packages with their checksums.
func mavenTree(w http.ResponseWriter, r *http.Request) bool {
	rest, ok := strings.CutPrefix(r.URL.Path, "/maven2/")
	plain, sum := strings.CutSuffix(rest, ".sha1")
	data, err := os.ReadFile(filepath.Join("/usr/share/maven-repo", filepath.FromSlash(plain)))
	if !ok || !filepath.IsLocal(plain) || err != nil {
		return false
	}
	if sum {
		data = fmt.Appendf(nil, "%x", sha1.Sum(data))
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	return true
}

// debian: one package in an archive whose Release is not signed.
func (s *shelf) debian() {
	arch := runtime.GOARCH
	control := "Package: left-words\nVersion: 1.2.3\nArchitecture: all\nMaintainer: Erin <erin@example.com>\nDescription: words\n"
	var deb bytes.Buffer
	deb.WriteString("!<arch>\n")
	for _, f := range []file{{"debian-binary", "2.0\n"}, {"control.tar.gz", string(tarGz(file{"./control", control}))}, {"data.tar.gz", string(tarGz(file{"./usr/share/left-words", "installed by apt\n"}))}} {
		fmt.Fprintf(&deb, "%-16s%-12d%-6d%-6d%-8s%-10d`\n%s", f.name, 1_700_000_000, 0, 0, "100644", len(f.text), f.text)
		if len(f.text)%2 == 1 {
			deb.WriteByte('\n')
		}
	}
	base := "deb.debian.org/debian/"
	path := "pool/main/l/left-words/left-words_1.2.3_all.deb"
	s.put(base+path, "application/vnd.debian.binary-package", deb.Bytes())
	packages := fmt.Appendf(nil, "%sFilename: %s\nSize: %d\nSHA256: %x\n\n", control, path, deb.Len(), sha256.Sum256(deb.Bytes()))
	list := "main/binary-" + arch + "/Packages"
	s.put(base+"dists/stable/"+list, "text/plain", packages)
	s.put(base+"dists/stable/Release", "text/plain", fmt.Appendf(nil,
		"Origin: Debian\nSuite: stable\nCodename: stable\nDate: %s\nArchitectures: %s\nComponents: main\nMD5Sum:\n %x %d %s\nSHA256:\n %x %d %s\n",
		time.Now().Add(-time.Hour).UTC().Format(time.RFC1123), arch, md5.Sum(packages), len(packages), list, sha256.Sum256(packages), len(packages), list))
}

// modules: one Go module at the proxy, and a checksum database of one record,
// signed. It returns the database's name and key as GOSUMDB takes them.
func (s *shelf) modules(ts *testscript.TestScript) string {
	const name, version = "github.com/acme/words", "v1.2.3"
	mod := "module " + name + "\n\ngo 1.21\n"
	files := []file{{"go.mod", mod}, {"words.go", "package words\n\nfunc Words() string { return \"installed by go\" }\n"}}
	hash := func(files []file, prefix string) string { // h1 of golang.org/x/mod/sumdb/dirhash
		var lines string
		for _, f := range files { // their names are in order
			lines += fmt.Sprintf("%x  %s\n", sha256.Sum256([]byte(f.text)), prefix+f.name)
		}
		sum := sha256.Sum256([]byte(lines))
		return "h1:" + base64.StdEncoding.EncodeToString(sum[:])
	}
	prefix := name + "@" + version + "/"
	var inZip []file
	for _, f := range files {
		inZip = append(inZip, file{prefix + f.name, f.text})
	}
	at := "proxy.golang.org/" + name + "/@v/"
	s.put(at+"list", "text/plain", []byte(version+"\n"))
	s.putJSON(at+version+".info", map[string]string{"Version": version, "Time": "2024-01-02T03:04:05Z"})
	s.put(at+version+".mod", "text/plain", []byte(mod))
	s.put(at+version+".zip", "application/zip", zipped(inZip...))

	// One record: the tree's hash is the leaf's (RFC 6962), and the note over it
	// is signed as golang.org/x/mod/sumdb/note writes it.
	public, private, err := ed25519.GenerateKey(rand.Reader)
	ts.Check(err)
	const server = "sum.golang.org"
	key := append([]byte{1}, public...)
	id := sha256.Sum256(append([]byte(server+"\n"), key...))
	record := fmt.Sprintf("%s %s %s\n%s %s/go.mod %s\n", name, version, hash(files, prefix), name, version, hash(files[:1], ""))
	leaf := sha256.Sum256(append([]byte{0}, record...))
	text := fmt.Sprintf("go.sum database tree\n1\n%s\n", base64.StdEncoding.EncodeToString(leaf[:]))
	signature := append(id[:4:4], ed25519.Sign(private, []byte(text))...)
	note := text + "\n— " + server + " " + base64.StdEncoding.EncodeToString(signature) + "\n"
	s.put(server+"/latest", "text/plain", []byte(note))
	s.put(server+"/lookup/"+name+"@"+version, "text/plain", []byte("0\n"+record+"\n"+note))
	s.put(server+"/tile/8/0/000.p/1", "application/octet-stream", leaf[:])
	return fmt.Sprintf("%s+%08x+%s", server, binary.BigEndian.Uint32(id[:4]), base64.StdEncoding.EncodeToString(key))
}

// copyGo puts as much of the Go that runs the tests into dir as it takes to
// download modules and to compile what imports nothing else: the tests' own may
// lie where an ordinary user can't read.
func copyGo(dir string) error {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return err
	}
	root := strings.TrimSpace(string(out))
	compile := filepath.Join("pkg", "tool", runtime.GOOS+"_"+runtime.GOARCH, "compile")
	for name, mode := range map[string]os.FileMode{"bin/go": 0o755, compile: 0o755, "VERSION": 0o644, "go.env": 0o644} {
		to := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := copyFile(to, filepath.Join(root, name), mode); err != nil {
			return err
		}
	}
	return nil
}
