package main

import (
	"bufio"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// proxyScript is the whole of srt's proxy with TLS termination, without the
// bridge that leads out of its sandbox.
const proxyScript = `import { SandboxManager } from %q;
await SandboxManager.initialize({
  network: { allowedDomains: ["localhost"], deniedDomains: [], tlsTerminate: { caCertPath: %q, caKeyPath: %q } },
  filesystem: { denyRead: [], allowWrite: ["."], denyWrite: [] },
});
console.log(JSON.stringify({ port: SandboxManager.getProxyPort(), token: SandboxManager.getProxyAuthToken() }));
process.stdin.on("end", () => process.exit(0)).resume();
`

// proxy is a running proxy of somebody else's.
type proxy struct {
	url  string
	ca   string // PEM file of the CA that its certificates come from
	pid  int
	stop func()
}

// proxyCA is a CA for proxies that take one.
type proxyCA struct{ cert, key string }

// newProxyCA makes an ECDSA one, or an RSA one for the proxy that takes no other.
func newProxyCA(dir string, withRSA bool) (proxyCA, error) {
	c := proxyCA{filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca-key.pem")}
	var key crypto.Signer
	var err error
	if withRSA {
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	} else {
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		return c, err
	}
	_, der, err := newCA("bench proxy CA", key)
	if err != nil {
		return c, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return c, err
	}
	if err := os.WriteFile(c.cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		return c, err
	}
	return c, os.WriteFile(c.key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600)
}

// run starts a proxy and waits until it accepts.
func (b *bench) run(dir string, port int, env []string, argv ...string) (*proxy, error) {
	cmd := exec.CommandContext(b.ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	// A group of its own, so that its helpers end with it.
	ownGroup(cmd)
	log, err := os.Create(filepath.Join(dir, "output"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	p := &proxy{url: fmt.Sprintf("http://127.0.0.1:%d", port), pid: cmd.Process.Pid, stop: func() { endGroup(cmd, ended) }}
	for range 150 {
		if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			c.Close()
			return p, nil
		}
		select {
		case <-ended:
			said, _ := os.ReadFile(log.Name())
			return nil, fmt.Errorf("it ended: %s", firstLine(string(said)))
		case <-time.After(100 * time.Millisecond):
		}
	}
	p.stop()
	return nil, fmt.Errorf("nothing listens on port %d after 15 s", port)
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// mitmproxy with streamed bodies (its default holds each in memory).
func (b *bench) mitmproxy(dir string, u *upstream) (*proxy, error) {
	bin, err := exec.LookPath("mitmdump")
	if err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	p, err := b.run(dir, port, nil, bin, "-q", "--listen-host", "127.0.0.1", "-p", fmt.Sprint(port),
		"--set", "confdir="+dir, "--set", "ssl_verify_upstream_trusted_ca="+u.caFile, "--set", "stream_large_bodies=1m")
	if err == nil {
		p.ca = filepath.Join(dir, "mitmproxy-ca-cert.pem")
	}
	return p, err
}

// squid with ssl-bump, without a cache, in one process.
func (b *bench) squid(dir string, u *upstream) (*proxy, error) {
	ca, err := newProxyCA(dir, false)
	if err != nil {
		return nil, err
	}
	bin, err := lookBeyond("squid", "/usr/sbin/squid")
	if err != nil {
		return nil, err
	}
	helper := "/usr/lib/squid/security_file_certgen"
	if _, err := os.Stat(helper); err != nil {
		return nil, fmt.Errorf("this squid has no ssl-bump (Debian: squid-openssl): %w", err)
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	conf := fmt.Sprintf(`http_port 127.0.0.1:%d ssl-bump tls-cert=%s tls-key=%s generate-host-certificates=on dynamic_cert_mem_cache_size=4MB
sslcrtd_program %s -s %s/ssl_db -M 4MB
tls_outgoing_options cafile=%s
ssl_bump bump all
http_access allow all
cache deny all
access_log stdio:%[5]s/access.log
cache_log %[5]s/cache.log
pid_filename %[5]s/squid.pid
coredump_dir %[5]s
shutdown_lifetime 0 seconds
`, port, ca.cert, ca.key, helper, dir, u.caFile)
	file := filepath.Join(dir, "squid.conf")
	if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
		return nil, err
	}
	if out, err := exec.Command(helper, "-c", "-s", filepath.Join(dir, "ssl_db"), "-M", "4MB").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", helper, err, firstLine(string(out)))
	}
	if os.Getuid() == 0 {
		// It gives up root for the user "proxy", who has to reach its files.
		if out, err := exec.Command("chown", "-R", "proxy", dir).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("chown: %w: %s", err, firstLine(string(out)))
		}
	}
	p, err := b.run(dir, port, nil, bin, "-N", "-f", file)
	if err == nil {
		p.ca = ca.cert
	}
	return p, err
}

func lookBeyond(name, path string) (string, error) {
	if found, err := exec.LookPath(name); err == nil {
		return found, nil
	}
	_, err := os.Stat(path)
	return path, err
}

// srtProxy is srt's terminating proxy, reached directly.
func (b *bench) srtProxy(dir string, u *upstream) (*proxy, error) {
	ca, err := newProxyCA(dir, true)
	if err != nil {
		return nil, err
	}
	c := b.srt(dir) // installs it
	if c.absent != "" {
		return nil, fmt.Errorf("%s", c.absent)
	}
	module := filepath.Join(b.cache, "srt-"+version(srtPackage), "node_modules", "@anthropic-ai", "sandbox-runtime", "dist", "index.js")
	script := filepath.Join(dir, "proxy.mjs")
	if err := os.WriteFile(script, fmt.Appendf(nil, proxyScript, module, ca.cert, ca.key), 0o644); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(b.ctx, "node", script)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "NODE_EXTRA_CA_CERTS="+u.caFile, "NODE_ENV=production")
	ownGroup(cmd)
	var said strings.Builder
	cmd.Stderr = &said
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	line := make(chan []byte, 1)
	go func() {
		l, _ := bufio.NewReader(out).ReadBytes('\n')
		line <- l
		cmd.Wait()
		close(ended)
	}()
	stop := func() { in.Close(); endGroup(cmd, ended) }
	var at struct {
		Port  int
		Token string
	}
	select {
	case l := <-line:
		if err := json.Unmarshal(l, &at); err != nil || at.Port == 0 {
			stop()
			return nil, fmt.Errorf("its proxy did not start: %s", firstLine(said.String()))
		}
	case <-time.After(30 * time.Second):
		stop()
		return nil, fmt.Errorf("its proxy did not start within 30 s")
	}
	return &proxy{url: fmt.Sprintf("http://bench:%s@127.0.0.1:%d", at.Token, at.Port), ca: ca.cert, pid: cmd.Process.Pid, stop: stop}, nil
}
