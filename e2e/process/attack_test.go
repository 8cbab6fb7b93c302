package process

import (
	"bytes"
	"context"
	"crypto/tls"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// The attacks of the catalogue, by its ids, as programs inside a real session.
// An attack is contained if it was refused inside and nothing of it is seen
// outside: in the upstream's record, at the host's listeners, in its files.
// Controls show that the same way works for what is granted; without them an
// attack proves nothing and is invalid.

//go:embed testdata/attacks/prelude.py
var attackPrelude string

//go:embed testdata/attacks/host.py
var attackHost string

//go:embed testdata/attacks/network.py
var attackNetwork string

const attackPolicy = `version: 1
grants:
  - http: https://docs.example.com/ok/**
    methods: [GET, POST]
  - http: https://other.example.com/o/**
    methods: [GET]
  - service: anthropic
    operations: [messages]
    credential: claude
credentials:
  claude: {from: {env: ANTHROPIC_API_KEY}}
upstreams:
  docs.example.com: {connect: "ADDR", ca: "CA"}
  other.example.com: {connect: "ADDR", ca: "CA"}
  api.anthropic.com: {connect: "ADDR", ca: "CA"}
`

// Real keys of the host, which never come inside.
const (
	realOpenAIKey = "sk-proj-REALOPENAI000000000000000000000000000000000000"
	realGeminiKey = "AIzaSyREALGEMINI00000000000000000000000"
)

const realKey = "sk-ant-api03-REAL0000000000000000000000000000000000000000000000000000000000000000000000000000000000000AA"

// tally is what is known of one id.
type tally struct {
	attacks  int
	controls int
	broken   []string // attacks that reached something
	invalid  []string // controls that failed
}

func TestAttacks(t *testing.T) {
	all := map[string]*tally{}
	t.Run("host", func(t *testing.T) { attackTheHost(t, all) })
	t.Run("network", func(t *testing.T) { attackTheNetwork(t, all) })
	t.Log(attackTable(all))
	for id, a := range all {
		if len(a.broken) > 0 || len(a.invalid) > 0 {
			t.Errorf("%s: reached %q, controls that failed %q", id, a.broken, a.invalid)
		}
	}
}

// TestAttacksElsewhere repeats them as the ordinary user, and with the relay
// in place of the TAP.
func TestAttacksElsewhere(t *testing.T) {
	if os.Getenv(sharedEnv) != "" {
		return // this is such a process
	}
	if os.Getuid() != 0 {
		t.Skipf("uid %d cannot change users or mounts; not proven in this run: the attacks as another user or over the relay", os.Getuid())
	}
	u := ordinaryUser(t)
	test := []string{filepath.Join(shared, "process.test"), "-test.run", "^Test(Model)?Attacks$", "-test.v"}
	for name, command := range map[string][]string{
		"ordinary user": append([]string{"setpriv", "--reuid", u.Uid, "--regid", u.Gid, "--clear-groups", "--", "env", "HOME=" + u.HomeDir}, test...),
		"root, relay": append([]string{"unshare", "--mount", "--propagation", "private", "--", "sh", "-ec",
			`mount -t tmpfs -o mode=755 none /dev/net && exec "$@"`, "sh"}, test...),
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), suiteTime)
			defer cancel()
			cmd := exec.CommandContext(ctx, command[0], command[1:]...)
			cmd.Dir, cmd.Env = shared, []string{sharedEnv + "=" + shared, "PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			t.Logf("%s", out)
		})
	}
}

func attackTheHost(t *testing.T, all map[string]*tally) {
	dir := t.TempDir()
	outside := filepath.Join(dir, "outside")
	canary := filepath.Join(outside, "canary")
	check(t, os.Mkdir(outside, 0o755), os.WriteFile(canary, []byte("CANARY-OF-THE-HOST"), 0o666))
	devices := []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/etc/passwd", canary, outside}
	before := metadata(t, devices)
	out := attackInside(t, dir, "version: 1\n", attackHost, outside)
	count(all, out)
	if after := metadata(t, devices); after != before {
		t.Errorf("PR-06, FS-01: files of the host changed:\n%s\n%s", before, after)
	}
	if bytes.Contains(out, []byte("CANARY")) {
		t.Errorf("FS-02: the sandbox has read the host's file")
	}
	// The trigger is valid: without a sandbox the same reads and writes work.
	data, err := os.ReadFile("/proc/self/root" + canary)
	if err != nil || !bytes.Contains(data, []byte("CANARY")) {
		t.Errorf("invalid: the canary cannot be read outside either: %v", err)
	}
}

func attackTheNetwork(t *testing.T, all map[string]*tally) {
	dir := t.TempDir()
	cert, caPEM, err := certificate([]string{"docs.example.com", "other.example.com", "api.anthropic.com"})
	check(t, err)
	caFile, logFile := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "record.jsonl")
	check(t, os.WriteFile(caFile, caPEM, 0o644))
	log, err := os.Create(logFile)
	check(t, err)
	upstream, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	server := &http.Server{Handler: &recorder{log: log}, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}, ReadHeaderTimeout: patience}
	go server.ServeTLS(upstream, "", "")
	defer server.Close()

	// A service of the host that nothing grants.
	private, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer private.Close()
	var touched atomic.Int32
	go func() {
		for {
			c, err := private.Accept()
			if err != nil {
				return
			}
			touched.Add(1)
			c.Close()
		}
	}()

	policy := strings.NewReplacer("ADDR", upstream.Addr().String(), "CA", caFile).Replace(attackPolicy)
	_, port, _ := net.SplitHostPort(private.Addr().String())
	count(all, attackInside(t, dir, policy, attackNetwork, port))

	if n := touched.Load(); n > 0 {
		t.Errorf("NET-13: %d connections to a service of the host", n)
	}
	record, err := os.ReadFile(logFile)
	check(t, err)
	real := 0
	for line := range bytes.Lines(record) {
		var r seen
		check(t, json.Unmarshal(line, &r))
		for _, word := range []string{"THIEF", "bad"} {
			if strings.Contains(string(line), word) {
				t.Errorf("it arrived at the upstream: %s", line)
			}
		}
		for name, values := range r.Header {
			if strings.EqualFold(name, "Anthropic-Beta") && strings.ContainsAny(strings.Join(values, ""), "abcdefghijklmnopqrstuvwxyz") {
				t.Errorf("EXF-07: %s: %q arrived", name, values)
			}
		}
		if bytes.Contains(line, []byte(realKey)) {
			real++
			if r.Host != "api.anthropic.com" || !strings.HasPrefix(r.URI, "/v1/messages") || r.Method != "POST" {
				t.Errorf("CRD-08: the credential went to %s %s%s", r.Method, r.Host, r.URI)
			}
		}
	}
	if real == 0 {
		t.Error("invalid: the credential never arrived, so the way was not open")
	}
	events, err := os.ReadFile(filepath.Join(dir, "events.jsonl"))
	check(t, err)
	if bytes.Contains(events, []byte(realKey)) || bytes.Contains(events, []byte("THIEF")) {
		t.Error("AUD-05: a credential stands in the event log")
	}
}

// attackInside runs a program in a session of its own and returns what it said.
func attackInside(t *testing.T, dir, policy, program string, args ...string) []byte {
	t.Helper()
	home := filepath.Join(dir, "home")
	workspace := filepath.Join(home, "ws")
	check(t, os.MkdirAll(workspace, 0o755))
	policyFile := filepath.Join(dir, "policy.yaml")
	check(t, os.WriteFile(policyFile, []byte(policy), 0o644),
		os.WriteFile(filepath.Join(workspace, "attack.py"), []byte(attackPrelude+program+"\nsay('', 'end', 'end')\n"), 0o644))
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	argv := append([]string{"run", "--policy", policyFile, "--events", filepath.Join(dir, "events.jsonl"), "--", "python3", "attack.py"}, args...)
	cmd := exec.CommandContext(ctx, filepath.Join(shared, "bin", "bulkhead"), argv...)
	cmd.Dir = workspace
	cmd.Env = []string{"HOME=" + home, "PATH=" + os.Getenv("PATH"), "ANTHROPIC_API_KEY=" + realKey, "OPENAI_API_KEY=" + realOpenAIKey, "GEMINI_API_KEY=" + realGeminiKey}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil || !bytes.Contains(out, []byte("\n|end|end|")) {
		t.Fatalf("invalid: the attacks did not run to their end: %v\n%s\n%s", err, errs.Bytes(), out)
	}
	return out
}

func count(all map[string]*tally, out []byte) {
	for line := range strings.Lines(string(out)) {
		f := strings.SplitN(strings.TrimSpace(line), "|", 4)
		if len(f) != 4 || f[0] == "" {
			continue
		}
		a := all[f[0]]
		if a == nil {
			a = &tally{}
			all[f[0]] = a
		}
		switch f[2] {
		case "control":
			a.controls++
			if f[3] != "ok" {
				a.invalid = append(a.invalid, f[1]+": "+f[3])
			}
		case "reached":
			a.attacks++
			a.broken = append(a.broken, f[1]+": "+f[3])
		default:
			a.attacks++
		}
	}
}

func attackTable(all map[string]*tally) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%-8s %8s %8s  verdict\n", "id", "attacks", "controls")
	ids := make([]string, 0, len(all))
	for id := range all {
		ids = append(ids, id)
	}
	sort.Strings(ids)
	for _, id := range ids {
		a, verdict := all[id], "contained"
		switch {
		case len(a.invalid) > 0:
			verdict = "INVALID"
		case len(a.broken) > 0:
			verdict = "OPEN"
		}
		fmt.Fprintf(&b, "%-8s %8d %8d  %s\n", id, a.attacks, a.controls, verdict)
	}
	return b.String()
}

// metadata is everything about the files that root inside could change.
func metadata(t *testing.T, files []string) string {
	t.Helper()
	var b strings.Builder
	for _, f := range files {
		st, err := os.Stat(f)
		check(t, err)
		s := st.Sys().(*syscall.Stat_t)
		fmt.Fprintf(&b, "%s %v %d:%d links %d", f, st.Mode(), s.Uid, s.Gid, s.Nlink)
		if !slices.Contains([]string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"}, f) {
			fmt.Fprintf(&b, " %d bytes", st.Size())
		}
		// Writing to a device moves its time; setting it to 1970 is the attack.
		fmt.Fprintf(&b, " old: %v\n", st.ModTime().Year() < 1980)
	}
	return b.String()
}

func check(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}
