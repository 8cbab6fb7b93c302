package egress

import (
	"bufio"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	cws "github.com/coder/websocket"
	"golang.org/x/crypto/ssh"

	v1 "github.com/bulkhead-dev/bulkhead/api/v1"
	"github.com/bulkhead-dev/bulkhead/internal/capability"
	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// explainPolicy has a grant of every form, two of them to ports of the host's loopback.
const explainPolicy = `version: 1
credentials:
  key: {from: {env: KEY}}
  agent: {from: {ssh: agent}}
grants:
  - {service: github, operations: [fetch], resources: [acme/widgets], credential: key}
  - {service: github, operations: [push], resources: ["acme/widgets@agent/*"], credential: agent}
  - {service: anthropic, operations: [models], credential: key}
  - {service: gitlab, operations: [api-read], resources: [group/project], credential: key}
  - http: https://docs.test/3/**
  - http: https://docs.test/live
    methods: [WEBSOCKET]
  - http: http://plain.test/**
  - http: https://*.wide.test/a/*
  - tcp: opaque.test:7000
  - tcp: localhost:{tcp}
  - http: http://localhost:{web}/api/**
  - {ssh: me@git.corp.test, operations: [fetch], resources: [team/repo], credential: agent}
`

// TestExplainIsTheGateway: the same questions asked of "policy explain" and of a
// running gateway by a client's act have the same verdict, for the same rule.
func TestExplainIsTheGateway(t *testing.T) {
	ok := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, err := cws.Accept(w, r, &cws.AcceptOptions{InsecureSkipVerify: true}); err == nil {
			c.CloseNow()
		}
	})
	up := serve(t, ok, "github.com", "api.anthropic.com", "gitlab.com", "docs.test", "a.wide.test")
	plain := servePlain(t, ok, "plain.test", "opaque.test", "localhost")
	_, port, _ := net.SplitHostPort(servePlain(t, ok).addr)
	_, web, _ := net.SplitHostPort(servePlain(t, ok).addr)
	ports := strings.NewReplacer("{tcp}", port, "{web}", web)
	p, err := policy.Parse("p.yaml", []byte(ports.Replace(explainPolicy)))
	if err != nil {
		t.Fatal(err)
	}
	set, err := capability.Compile(capability.FromPolicy(p), catalog.Default())
	if err != nil {
		t.Fatal(err)
	}
	_, hostKey, _ := ed25519.GenerateKey(rand.Reader)
	der, err := x509.MarshalPKCS8PrivateKey(hostKey)
	if err != nil {
		t.Fatal(err)
	}
	plain.names = plain.names[:2] // localhost is no entry: it is the host
	r := startRelay(t, func(c *Config) {
		c.Spec = capability.FromPolicy(p)
		c.SSH.HostKey = der
	}, up, plain)

	rows := map[string]int{}
	for _, q := range strings.Split(ports.Replace(strings.TrimSpace(`
GET https://docs.test/3/x
GET https://docs.test/3
GET https://docs.test/4/x
POST https://docs.test/3/x
GET https://docs.test/3/a%2Fb
GET https://docs.test/3/a%3Fb
GET https://docs.test/3/a;b
GET https://docs.test/3/%2e%2e/4
GET https://docs.test:8443/3/x
GET http://docs.test/3/x
GET http://docs.test:443/3/x
GET https://plain.test/
GET http://plain.test/x
POST http://plain.test/x
GET https://a.wide.test/a/b
GET https://a.wide.test/a/b/c
GET https://wide.test/a/b
GET https://nowhere.test/
GET wss://docs.test/live
WEBSOCKET https://docs.test/3/x
GET https://docs.test/live
GET https://api.anthropic.com/v1/models
GET https://api.anthropic.com/v1/files
GET https://api.anthropic.com/v9/unknown
GET https://github.com/acme/widgets.git/info/refs?service=git-upload-pack
GET https://github.com/acme/widgets.git/info/refs?service=git-receive-pack
GET https://github.com/acme/plans.git/info/refs?service=git-upload-pack
GET https://gitlab.com/api/v4/projects/group%2Fproject
GET https://gitlab.com/api/v4/projects/group%2fproject
GET https://gitlab.com/api/v4/projects/group%2Fother
GET https://gitlab.com/api/v4/projects/group%252Fproject
GET http://localhost:{web}/api/x
GET http://localhost:{web}/x
GET https://localhost:{web}/api/x
CONNECT tcp://localhost:{web}
GET http://localhost:1/x
CONNECT tcp://localhost:{tcp}
CONNECT tcp://localhost:2
CONNECT tcp://opaque.test:7000
CONNECT tcp://opaque.test:7001
CONNECT tcp://docs.test:443
CONNECT tcp://nowhere.test:443
CONNECT tcp://10.0.0.1:443
CONNECT tcp://[::1]:443
CONNECT tcp://2130706433:443
PUSH ssh://git@github.com/acme/widgets.git
FETCH ssh://git@github.com/acme/widgets
PUSH git@github.com:acme/plans
PUSH ssh://root@github.com/acme/widgets
FETCH me@git.corp.test:team/repo
FETCH me@git.corp.test:team/other
PUSH me@git.corp.test:team/repo
ARCHIVE me@git.corp.test:team/repo
FETCH ssh://me@git.corp.test:2222/team/repo
FETCH git@docs.test:team/repo
FETCH git@nowhere.test:team/repo
`)), "\n") {
		t.Run(q, func(t *testing.T) {
			method, target, _ := strings.Cut(q, " ")
			x, err := set.Explain(method, target)
			if err != nil {
				t.Fatal(err)
			}
			want := answer{x.Decision.Verdict, x.Decision.Reason.Rule, x.Decision.Reason.Code}
			got := r.live(t, set, method, target)
			if got.rule.File == "" && want.rule.File != "" {
				got.rule, got.code = want.rule, want.code // what has no form or the wrong protocol is refused without a rule
			}
			if got != want {
				t.Errorf("the gateway: %s\nexplain:     %s\n%s", got, want, x)
			}
			rows[got.verdict.String()]++
		})
	}
	if rows["allow"] < 15 || rows["deny"] < 30 {
		t.Errorf("the table proves little: %v", rows)
	}
}

type answer struct {
	verdict vocabulary.Verdict
	rule    vocabulary.Position
	code    string
}

func (a answer) String() string { return fmt.Sprintf("%s (%s, %s)", a.verdict, a.code, a.rule) }

// live does what the question is about and returns what the gateway recorded.
func (r *rig) live(t *testing.T, set *capability.Set, method, target string) answer {
	t.Helper()
	r.rec.mu.Lock()
	before := len(r.rec.events)
	r.rec.mu.Unlock()
	if !strings.Contains(target, "://") {
		at, path, _ := strings.Cut(target, ":")
		target = "ssh://" + at + "/" + path
	}
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	switch u.Scheme {
	case "tcp":
		c, open := r.connect(t, u.Host)
		defer c.Close()
		if treat, d := set.Connect(hostPort(u.Host)); open && treat != capability.TreatOpaque {
			// That it opened is the answer; only opaque ones are recorded.
			return answer{vocabulary.Allow, d.Reason.Rule, d.Reason.Code}
		}
	case "ssh":
		r.gitCommand(t, method, u)
	default:
		r.request(t, method, u)
	}
	for range 1500 {
		r.rec.mu.Lock()
		all := append([]v1.Event(nil), r.rec.events[before:]...)
		r.rec.mu.Unlock()
		for _, e := range all {
			// A tunnel that was asked about before may still be found to carry nothing.
			if e.Reason.Code != "protocol-refused" || strings.Contains(string(e.Resource), u.Hostname()) {
				return answer{e.Verdict, e.Reason.Rule, e.Reason.Code}
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("no event")
	return answer{}
}

func (r *rig) request(t *testing.T, method string, u *url.URL) {
	t.Helper()
	if method == catalog.MethodWebSocket || strings.HasPrefix(u.Scheme, "ws") {
		wss := *u
		wss.Scheme = "wss"
		if c, _, err := r.socket(t, wss.String()); err == nil {
			c.CloseNow()
		}
		return
	}
	if u.Scheme == "http" && u.Port() == "443" || u.Hostname() == "localhost" {
		// Absolute form, as a proxy's client writes it; Go's would leave localhost out.
		c, err := net.Dial("tcp", r.proxy)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(15 * time.Second))
		fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", method, u, u.Host)
		bufio.NewReader(c).ReadString('\n')
		return
	}
	req, err := http.NewRequest(method, u.String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	switch u.Hostname() {
	case "github.com":
		req.SetBasicAuth("x-access-token", placeholder)
	case "api.anthropic.com":
		req.Header.Set("X-Api-Key", placeholder)
	case "gitlab.com":
		req.Header.Set("Private-Token", placeholder)
	}
	if resp, err := r.client().Do(req); err == nil {
		resp.Body.Close()
	}
}

func hostPort(s string) hostport.HostPort {
	hp, _ := hostport.Parse(s) // an address: nothing
	return hp
}

// connect opens a tunnel and reads nothing of what follows.
func (r *rig) connect(t *testing.T, target string) (c net.Conn, open bool) {
	t.Helper()
	c, err := net.Dial("tcp", r.proxy)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(15 * time.Second))
	fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target)
	var head []byte
	for b := make([]byte, 1); !strings.HasSuffix(string(head), "\r\n\r\n"); {
		if _, err := c.Read(b); err != nil {
			break
		}
		head = append(head, b...)
	}
	return c, strings.Contains(string(head), " 200 ")
}

// gitCommand asks for what git would ask an SSH server for.
func (r *rig) gitCommand(t *testing.T, method string, u *url.URL) {
	t.Helper()
	port := u.Port()
	if port == "" {
		port = "22"
	}
	c, open := r.connect(t, u.Hostname()+":"+port)
	defer c.Close()
	if !open {
		return
	}
	sc, channels, requests, err := ssh.NewClientConn(c, u.Hostname(), &ssh.ClientConfig{User: u.User.Username(), HostKeyCallback: ssh.InsecureIgnoreHostKey()})
	if err != nil {
		return
	}
	defer sc.Close()
	s, err := ssh.NewClient(sc, channels, requests).NewSession()
	if err != nil {
		t.Fatal(err)
	}
	program := map[string]string{"FETCH": "git-upload-pack", "PUSH": "git-receive-pack", "ARCHIVE": "git-upload-archive"}[method]
	s.Run(program + " '" + u.Path + "'")
}
