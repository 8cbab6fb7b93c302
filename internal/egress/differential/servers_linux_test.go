package differential

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// reading is one request as one parser understood it.
type reading struct {
	conn, nth            int
	proto                string
	method, target, host string
	path                 string // normalised, and decoded (nginx), or not (Node)
	origin               string // where Node thinks that the target leads
	query                [][2]string
	header               [][2]string
	length               int
	hash                 string
	whole                bool // the body has ended
	trailers             []string
}

func (r reading) String() string {
	whole := ""
	if !r.whole {
		whole = " (broken off)"
	}
	return fmt.Sprintf("conn %d #%d: %s %q host %q path %q, %d bytes %.8s%s, %q", r.conn, r.nth, r.method, r.target, r.host, r.path, r.length, r.hash, whole, r.header)
}

// report is what a reader says about one lane.
type report struct {
	readings []reading
	refused  []string // why it ended a connection by itself
}

const lanes = 4

// servers are nginx and Node, each with two sockets for every lane.
type servers struct {
	dir  string
	sink net.Listener
	node net.Conn

	mu      sync.Mutex
	nginx   [lanes]report
	nodes   [lanes]report
	marks   map[string]chan struct{}
	counter int
}

func (s *servers) socket(reader string, lane int, h2 bool) string {
	proto := "h1"
	if h2 {
		proto = "h2"
	}
	return filepath.Join(s.dir, fmt.Sprintf("%s%d.%s", reader, lane, proto))
}

// startServers starts both; they end with the test process, and stop ends them
// before.
func startServers() (_ *servers, stop func(), err error) {
	s := &servers{marks: map[string]chan struct{}{}}
	if s.dir, err = os.MkdirTemp("", "bh-differential-"); err != nil {
		return nil, nil, err
	}
	var cmds []*exec.Cmd
	end := func() {
		for _, c := range cmds {
			if c.Process != nil {
				c.Process.Kill()
				c.Wait()
			}
		}
		os.RemoveAll(s.dir)
	}
	defer func() {
		if err != nil {
			end()
		}
	}()
	if s.sink, err = net.Listen("unix", filepath.Join(s.dir, "sink")); err != nil {
		return nil, nil, err
	}
	go s.serveSink()
	nodeSink, err := net.Listen("unix", filepath.Join(s.dir, "node"))
	if err != nil {
		return nil, nil, err
	}
	conf, err := os.ReadFile("testdata/nginx.conf")
	if err != nil {
		return nil, nil, err
	}
	listen, args := "", []string{"testdata/reader.mjs", filepath.Join(s.dir, "node")}
	for lane := range lanes {
		listen += fmt.Sprintf("listen unix:%s; listen unix:%s http2;\n", s.socket("nginx", lane, false), s.socket("nginx", lane, true))
		args = append(args, s.socket("lane", lane, false), s.socket("lane", lane, true))
	}
	text := strings.NewReplacer("LISTEN", listen, "SINK", filepath.Join(s.dir, "sink")).Replace(string(conf))
	if err := os.WriteFile(filepath.Join(s.dir, "nginx.conf"), []byte(text), 0o644); err != nil {
		return nil, nil, err
	}
	nginx := "nginx"
	if _, err := exec.LookPath(nginx); err != nil {
		nginx = "/usr/sbin/nginx" // not on every user's path
	}
	cmds = []*exec.Cmd{exec.Command(nginx, "-p", s.dir, "-c", "nginx.conf"), exec.Command("node", args...)}
	for _, c := range cmds {
		c.Stdout, c.Stderr = os.Stderr, os.Stderr
		c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	}
	if err := startAll(cmds); err != nil {
		return nil, nil, fmt.Errorf("%w (scripts/install-deps test installs nginx and node)", err)
	}
	nodeSink.(*net.UnixListener).SetDeadline(time.Now().Add(30 * time.Second))
	if s.node, err = nodeSink.Accept(); err != nil {
		return nil, nil, fmt.Errorf("node did not start: %w", err)
	}
	ready := make(chan struct{})
	go s.readNode(ready)
	select {
	case <-ready:
	case <-time.After(30 * time.Second):
		return nil, nil, fmt.Errorf("node did not get ready")
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("unix", s.socket("nginx", lanes-1, true))
		if err == nil {
			c.Close()
			return s, end, nil
		}
		if time.Now().After(deadline) {
			return nil, nil, fmt.Errorf("nginx did not start: %w", err)
		}
	}
}

// startAll starts the commands from a thread that lives as long as this process:
// what a parent's death means is about its thread.
func startAll(cmds []*exec.Cmd) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		for _, c := range cmds {
			if err := c.Start(); err != nil {
				result <- err
				return
			}
		}
		result <- nil
		select {}
	}()
	return <-result
}

// serveSink takes what nginx read, one request after the other: a mark stands
// behind all requests that nginx sent before it.
func (s *servers) serveSink() {
	for {
		c, err := s.sink.Accept()
		if err != nil {
			return
		}
		c.SetDeadline(time.Now().Add(5 * time.Second))
		s.takeSCGI(c)
		c.Close()
	}
}

func (s *servers) takeSCGI(c net.Conn) {
	br := bufio.NewReader(c)
	prefix, err := br.ReadString(':')
	n, bad := strconv.Atoi(strings.TrimSuffix(prefix, ":"))
	if err != nil || bad != nil || n > 1<<20 {
		return
	}
	head := make([]byte, n+1)
	if _, err := io.ReadFull(br, head); err != nil {
		return
	}
	r := reading{whole: true}
	lane := -1
	fields := bytes.Split(bytes.TrimSuffix(head[:n], []byte{0}), []byte{0})
	for i := 0; i+1 < len(fields); i += 2 {
		name, value := string(fields[i]), string(fields[i+1])
		switch name {
		case "MARK":
			s.marked(value)
			return
		case "CONTENT_LENGTH":
			r.length, _ = strconv.Atoi(value)
		case "READ_METHOD":
			r.method = value
		case "READ_TARGET":
			r.target = value
		case "READ_PATH":
			r.path = value
		case "READ_HOST":
			r.host = value
		case "READ_PROTO":
			r.proto = strings.TrimPrefix(value, "HTTP/")
		case "READ_CONN":
			r.conn, _ = strconv.Atoi(value)
		case "READ_NTH":
			r.nth, _ = strconv.Atoi(value)
		case "READ_SOCKET":
			fmt.Sscanf(filepath.Base(value), "nginx%d.", &lane)
		default:
			if h, ok := strings.CutPrefix(name, "HTTP_"); ok {
				r.header = append(r.header, [2]string{h, value})
			}
		}
	}
	hash := sha256.New()
	if m, err := io.CopyN(hash, br, int64(r.length)); err != nil {
		r.whole, r.length = false, int(m)
	}
	r.hash = hex.EncodeToString(hash.Sum(nil))
	if lane >= 0 {
		s.mu.Lock()
		s.nginx[lane].readings = append(s.nginx[lane].readings, r)
		s.mu.Unlock()
	}
	io.WriteString(c, "Status: 200 OK\r\nX-Read: yes\r\nContent-Length: 2\r\n\r\nok")
}

// nodeLine is one line of reader.mjs.
type nodeLine struct {
	Kind, Mark, Why                                 string
	Lane                                            string
	Conn, Nth                                       int
	Proto, Method, Target, Host, Path, Origin, Hash string
	Headers, Query                                  [][2]string
	Length                                          int
	Trailers                                        []string
}

func (s *servers) readNode(ready chan struct{}) {
	dec := json.NewDecoder(s.node)
	for {
		var l nodeLine
		if err := dec.Decode(&l); err != nil {
			return
		}
		var lane int
		fmt.Sscanf(l.Lane, "lane%d", &lane)
		s.mu.Lock()
		switch l.Kind {
		case "ready":
			close(ready)
		case "refused":
			s.nodes[lane].refused = append(s.nodes[lane].refused, l.Why)
		case "request":
			// Late ones belong to a case that is over: its connection broke off.
			for i := range s.nodes[lane].readings {
				if r := &s.nodes[lane].readings[i]; r.conn == l.Conn && r.nth == l.Nth {
					r.whole, r.length, r.hash, r.trailers = true, l.Length, l.Hash, l.Trailers
				}
			}
		case "head":
			r := reading{
				conn: l.Conn, nth: l.Nth, proto: l.Proto, method: l.Method, target: latin1(l.Target), host: latin1(l.Host), path: l.Path, origin: l.Origin,
				query: l.Query,
			}
			for _, h := range l.Headers {
				r.header = append(r.header, [2]string{latin1(h[0]), latin1(h[1])})
			}
			s.nodes[lane].readings = append(s.nodes[lane].readings, r)
		}
		s.mu.Unlock()
		if l.Kind == "mark" {
			s.marked(l.Mark)
		}
	}
}

// latin1 turns Node's letters, which are bytes, into bytes.
func latin1(s string) string {
	b := make([]byte, 0, len(s))
	for _, r := range s {
		b = append(b, byte(r))
	}
	return string(b)
}

func (s *servers) marked(mark string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.marks[mark]; c != nil {
		close(c)
		delete(s.marks, mark)
	}
}

// take returns what both have read on a lane since the last time. All
// connections of the lane must have ended.
func (s *servers) take(lane int) (nginx, node report, err error) {
	s.mu.Lock()
	s.counter++
	a, b := fmt.Sprintf("a%d", s.counter), fmt.Sprintf("b%d", s.counter)
	marks := []chan struct{}{make(chan struct{}), make(chan struct{})}
	s.marks[a], s.marks[b] = marks[0], marks[1]
	s.mu.Unlock()
	c, err := net.Dial("unix", filepath.Join(s.dir, "sink"))
	if err != nil {
		return nginx, node, err
	}
	defer c.Close()
	fmt.Fprintf(c, "%d:MARK\x00%s\x00,", len(a)+6, a)
	if _, err := io.WriteString(s.node, b+"\n"); err != nil {
		return nginx, node, err
	}
	for _, m := range marks {
		select {
		case <-m:
		case <-time.After(30 * time.Second):
			return nginx, node, fmt.Errorf("a server does not answer any more")
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	nginx, node = s.nginx[lane], s.nodes[lane]
	s.nginx[lane], s.nodes[lane] = report{}, report{}
	return nginx, node, nil
}
