package egress

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
)

func init() { childproc.Register("test-tap", tapMain) }

// tapMain runs in new user, mount and network namespaces: it makes the TAP,
// sends its descriptor over fd 3, and then runs one shell script for each line
// it is told.
func tapMain() int {
	runtime.LockOSThread()
	if err := tapSetup(os.Args[1]); err != nil {
		fmt.Println("setup:", err)
		return 1
	}
	fmt.Println("ready")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		if kind, ok := strings.CutPrefix(in.Text(), "!raw "); ok {
			fmt.Printf("%q %q\n", "", fmt.Sprint(rawSend(kind)))
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		out, err := exec.CommandContext(ctx, "/bin/sh", "-c", in.Text()).CombinedOutput()
		cancel()
		fmt.Printf("%q %q\n", string(out), fmt.Sprint(err))
	}
	return 0
}

// rawSend sends what an ordinary client cannot and waits for an answer.
func rawSend(kind string) error {
	family, proto, msg := unix.AF_INET, unix.IPPROTO_ICMP, []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}
	var to unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte{93, 184, 216, 34}}
	switch kind {
	case "icmp6":
		family, proto, msg = unix.AF_INET6, unix.IPPROTO_ICMPV6, []byte{128, 0, 0, 0, 0, 0, 0, 0}
		to = &unix.SockaddrInet6{Addr: [16]byte{0x26, 0x06, 0x28, 15: 1}}
	case "sctp":
		proto, msg = unix.IPPROTO_SCTP, make([]byte, 12)
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW, proto)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 300000})
	if err := unix.Sendto(fd, msg, 0, to); err != nil {
		return nil
	}
	_, _, err = unix.Recvfrom(fd, make([]byte, 512), 0)
	return err
}

func tapSetup(resolv string) error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	req, err := unix.NewIfreq("bh0")
	if err != nil {
		return err
	}
	req.SetUint16(sandbox.LinkFlags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return fmt.Errorf("TUNSETIFF: %w", err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, sandbox.LinkOffload); err != nil {
		return fmt.Errorf("TUNSETOFFLOAD: %w", err)
	}
	link, err := netlink.LinkByName("bh0")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetMTU(link, sandbox.LinkMTU); err != nil {
		return fmt.Errorf("mtu: %w", err)
	}
	for _, s := range []string{sandbox.LinkGuest4, sandbox.LinkGuest6} {
		a, err := netlink.ParseAddr(s)
		if err != nil {
			return err
		}
		a.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(link, a); err != nil {
			return fmt.Errorf("address %s: %w", s, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	if lo, err := netlink.LinkByName("lo"); err == nil {
		netlink.LinkSetUp(lo)
	}
	for _, gw := range []string{sandbox.LinkGateway4, sandbox.LinkGateway6} {
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(gw)}); err != nil {
			return fmt.Errorf("route %s: %w", gw, err)
		}
	}
	if err := unix.Mount(resolv, "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("resolv.conf: %w", err)
	}
	return unix.Sendmsg(3, []byte("x"), unix.UnixRights(fd), nil, 0)
}

// inside is a shell behind a TAP whose other end is a gateway.
type inside struct {
	*rig
	in  io.Writer
	out *bufio.Reader
	dir string
}

func startTap(t testing.TB, edit func(*Config), ups ...*upstream) *inside {
	t.Helper()
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip("NOT PROVEN: everything over a real TAP (no /dev/net/tun)")
	}
	if f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil {
		t.Skipf("NOT PROVEN: everything over a real TAP (%v)", err)
	} else {
		f.Close()
	}
	s := &inside{rig: &rig{t: t, rec: &recorder{}, ca: newCA(t, "session CA")}, dir: t.TempDir()}
	cfg := config(t, sandbox.NetTAP, s.ca, ups...)
	if edit != nil {
		edit(&cfg)
	}
	os.Chmod(s.dir, 0o755)
	os.WriteFile(filepath.Join(s.dir, "ca.pem"), s.ca.pem(), 0o644)
	resolv := filepath.Join(s.dir, "resolv.conf")
	os.WriteFile(resolv, []byte("nameserver "+sandbox.LinkGateway4+"\noptions timeout:2 attempts:1\n"), 0o644)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	theirs := os.NewFile(uintptr(pair[1]), "pair")
	cmd := &exec.Cmd{
		Path: childproc.Self(), Args: []string{childproc.Argv0("test-tap"), resolv}, ExtraFiles: []*os.File{theirs}, Stderr: os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
			Pdeathsig:   syscall.SIGKILL,
		},
	}
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	s.in, s.out = in, bufio.NewReader(out)
	if l, err := s.out.ReadString('\n'); l != "ready\n" {
		t.Fatalf("the sandbox's side: %s%v", l, err)
	}
	oob := make([]byte, 64)
	_, oobn, _, _, err := unix.Recvmsg(pair[0], make([]byte, 1), oob, 0)
	if err != nil {
		t.Fatal(err)
	}
	msgs, _ := unix.ParseSocketControlMessage(oob[:oobn])
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		t.Fatal(err)
	}
	link := os.NewFile(uintptr(fds[0]), "tap")
	defer link.Close()
	if s.gw, err = Start(context.Background(), cfg, s.rec); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.gw.Close() })
	if err := s.gw.Attach(link); err != nil {
		t.Fatal(err)
	}
	return s
}

// sh runs a script inside.
func (s *inside) sh(script string) (out string, ok bool) {
	s.t.Helper()
	fmt.Fprintln(s.in, strings.ReplaceAll(script, "\n", ";"))
	l, err := s.out.ReadString('\n')
	if err != nil {
		s.t.Fatal(err)
	}
	var status string
	if _, err := fmt.Sscanf(l, "%q %q", &out, &status); err != nil {
		s.t.Fatalf("%v in %q", err, l)
	}
	return out, status == "<nil>"
}

func (s *inside) curl(args string) (string, bool) {
	s.t.Helper()
	return s.sh("env -i PATH=/usr/bin:/bin curl -sS --max-time 15 --cacert " + s.dir + "/ca.pem " + args + " 2>&1")
}

func TestTAPCurl(t *testing.T) {
	up := serve(t, http.HandlerFunc(echo), "api.test", "other.test")
	plain := servePlain(t, http.HandlerFunc(echo), "plain.test")
	s := startTap(t, nil, up, plain)
	for _, args := range []string{"https://other.test/a", "--http1.1 https://other.test/a", "-4 https://other.test/a", "-6 https://other.test/a", "http://plain.test/a"} {
		if out, ok := s.curl(args); !ok || !strings.HasPrefix(out, "GET /a host=") {
			t.Errorf("curl %s: %s", args, out)
		}
	}
	if out, _ := s.curl("-H 'Authorization: Bearer " + placeholder + "' https://api.test/x"); !strings.Contains(out, "auth=") || strings.Contains(out, realSecret) || !strings.Contains(out, "Bearer ******") {
		t.Errorf("credential: %s", out)
	}
	if out, ok := s.curl("-o /dev/null -w '%{http_code}' -X DELETE http://plain.test/"); !ok || out != "403" {
		t.Errorf("denied method: %s", out)
	}
}

// A granted WebSocket over a real TAP: its handshake passes, and not without the grant.
func TestTAPWebSocket(t *testing.T) {
	s := startTap(t, sockets, serve(t, http.HandlerFunc(socketServer), "other.test"))
	args := "-i -s -N --http1.1 --max-time 2 -H 'Connection: Upgrade' -H 'Upgrade: websocket' -H 'Sec-WebSocket-Version: 13' -H 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==' "
	if out, _ := s.curl(args + "https://other.test/"); !strings.Contains(out, "HTTP/1.1 101 ") || !strings.Contains(out, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") {
		t.Errorf("granted: %q", out)
	}
	if out, _ := s.curl(args + "https://readonly.test/docs/"); !strings.Contains(out, "HTTP/1.1 403 ") {
		t.Errorf("not granted: %q", out)
	}
}

// What leaves the sandbox in another way than by a granted name fails at once
// and is recorded.
func TestTAPNothingElseLeaves(t *testing.T) {
	s := startTap(t, nil, serve(t, http.HandlerFunc(echo), "other.test"))
	fast := func(what, code, script string) {
		t.Helper()
		before := len(s.rec.with(code))
		start := time.Now()
		if out, ok := s.sh(script); ok {
			t.Errorf("%s worked: %s", what, out)
		}
		if d := time.Since(start); d > 4*time.Second {
			t.Errorf("%s took %v to fail", what, d)
		}
		for range 1500 {
			if len(s.rec.with(code)) > before {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Errorf("%s: no event %q", what, code)
	}
	fast("an ungranted name", "no-grant", "curl -sS --max-time 5 https://secret.collector.test/")
	fast("DNS over HTTPS", "no-grant", "curl -sS --max-time 5 'https://dns.google/dns-query?dns=AAABAAABAAAAAAAAA3d3dwdleGFtcGxlA2NvbQAAAQAB'")
	fast("DNS over HTTPS at an address", "ip-literal", "curl -sS --max-time 5 https://1.1.1.1/dns-query")
	fast("DNS over TLS", "ip-literal", "bash -c 'exec 5<>/dev/tcp/1.1.1.1/853'")
	fast("an IPv4 literal", "ip-literal", "curl -sS --max-time 5 http://93.184.216.34/")
	fast("an IPv6 literal", "ip-literal", "curl -sS -g --max-time 5 'http://[2606:2800:220:1::1]/'")
	fast("metadata", "ip-literal", "curl -sS --max-time 5 http://169.254.169.254/latest/")
	fast("the gateway itself", "no-grant", "curl -sS --max-time 5 http://"+sandbox.LinkGateway4+":80/")
	fast("a synthetic address nobody asked for", "ip-literal", "curl -sS --max-time 5 http://198.18.9.9/")
	fast("another port of a granted name", "no-grant", "curl -sS --max-time 5 http://other.test:8080/")
	fast("UDP", "protocol-refused", udp("93.184.216.34/443"))
	fast("DNS of another server", "protocol-refused", udp("8.8.8.8/53"))
	fast("mDNS", "protocol-refused", udp("224.0.0.251/5353"))
	fast("ICMP", "protocol-refused", "!raw icmp4")
	fast("ICMPv6", "protocol-refused", "!raw icmp6")
	fast("another protocol", "protocol-refused", "!raw sctp")
	if got := len(s.rec.allowed()); got != 0 {
		t.Errorf("%d acts were allowed", got)
	}
	if out, ok := s.curl("https://other.test/still"); !ok {
		t.Errorf("afterwards: %s", out)
	}
}

// udp sends three datagrams; a closed port shows at the second.
func udp(to string) string {
	return "bash -c 'exec 5<>/dev/udp/" + to + "; echo x >&5; sleep 0.2; echo y >&5 && timeout 0.3 cat <&5'"
}

func TestTAPBigTransfer(t *testing.T) {
	const size = 64 << 20
	up := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(size))
		io.Copy(w, io.LimitReader(neverending('x'), size))
	}), "other.test")
	s := startTap(t, nil, up)
	start := time.Now()
	if out, ok := s.curl("-o /dev/null -w '%{size_download}' https://other.test/"); !ok || out != fmt.Sprint(size) {
		t.Errorf("download: %s", out)
	}
	t.Logf("%d MiB in %v, peak %d MiB", size>>20, time.Since(start), memory(t, s.gw.PID())>>10)
}

func TestTAPConnectionFlood(t *testing.T) {
	s := startTap(t, func(c *Config) { c.Limits.MaxFlows = 16 }, serve(t, http.HandlerFunc(echo), "other.test"))
	out, _ := s.sh(`bash -c 'ip=$(getent ahostsv4 other.test | head -1 | cut -d" " -f1); for i in $(seq 3 60); do eval "exec $i<>/dev/tcp/$ip/443" 2>/dev/null || echo refused; done | sort | uniq -c'`)
	if !strings.Contains(out, "refused") {
		t.Errorf("60 idle connections with a limit of 16: %q", out)
	}
	s.rec.wait(t, "flow-limit")
	for range 100 {
		if _, ok := s.curl("https://other.test/"); ok {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Error("the gateway did not recover")
}

// Every query that the link brings is on record, by itself or counted; what the
// sandbox's own kernel drops before never was a query.
func TestTAPQueryFlood(t *testing.T) {
	s := startTap(t, nil)
	os.WriteFile(filepath.Join(s.dir, "flood.py"), []byte(`
import socket, time
def sent():
    for l in open("/proc/net/dev"):
        if l.strip().startswith("bh0:"):
            return int(l.split(":")[1].split()[9])
c = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
c.connect(("`+sandbox.LinkGateway4+`", 53))
q = b"\0\7\1\0\0\1\0\0\0\0\0\0\6nobody\4test\0\0\1\0\1"
before = sent()
for i in range(20000):
    try: c.send(q)
    except OSError: pass
last = -1
while last != sent():
    last = sent()
    time.sleep(0.5)
time.sleep(2) # what the gateway has read it has yet to answer and to record, on a machine that may be busy
print(sent() - before)
`), 0o644)
	out, ok := s.sh("python3 " + s.dir + "/flood.py")
	n, err := strconv.Atoi(strings.TrimSpace(out))
	if !ok || err != nil || n < 100 {
		t.Fatalf("the flood: %s", out)
	}
	s.gw.Close()
	total, lines := 0, 0
	for _, code := range []string{"no-grant", "query-limit"} {
		for _, e := range s.rec.with(code) {
			k := 1
			fmt.Sscan(e.Attrs["count"], &k)
			total += k
			lines++
		}
	}
	// Some packets were not queries: address resolution.
	if total > n || total < n-20 {
		t.Errorf("the link brought %d packets; %d queries are on record", n, total)
	}
	t.Logf("%d packets, %d lines", n, lines)
}
