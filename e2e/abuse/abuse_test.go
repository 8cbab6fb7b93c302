// Package abuse lets a sandbox do its worst to its gateway (program attack)
// while another session works (program measure), with the real binary and the
// limits as they are.
//
// Every day each attack gets a moment and all together some seconds: the other
// session's requests must all succeed, the abused gateway stay the process that
// it was, within its bounds of memory and descriptors, and the log stay whole
// and small. `make abuse` does it for ten minutes and also holds the other
// session's median latency to twice that of the quiet time before.
package abuse

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/egress/confine"
)

// Bounds. The gateway's own are confine's: a collector that works harder from
// SoftMemory on, and RLIMIT_NOFILE.
const (
	gatewayMemory    = confine.SoftMemory + confine.SoftMemory/4
	controllerMemory = 256 << 20
	denialsPerSecond = 40  // lines of refusals in the log, in the long run
	denialsAtOnce    = 600 // and in a burst
	latencyRatio     = 2.0 // of medians, in the long lane
	patience         = 30 * time.Second
)

// lane is how long things take.
type lane struct {
	quiet, each, together time.Duration
	ratio                 bool
}

func thisLane(t *testing.T) lane {
	v := os.Getenv("BULKHEAD_ABUSE")
	if v == "" {
		return lane{quiet: 3 * time.Second, each: 400 * time.Millisecond, together: 8 * time.Second}
	}
	whole, err := time.ParseDuration(v)
	if err != nil {
		t.Fatalf("BULKHEAD_ABUSE: %v", err)
	}
	return lane{quiet: max(whole/20, 3*time.Second), each: whole / 80, together: whole / 2, ratio: true}
}

// The abuser is the user of the test run, with the network that this host gives
// him; the other session is another user's where that can be.
func TestAbuse(t *testing.T) { abuse(t, thisLane(t), user{}, otherUser(t)) }

// The same through the relay, with both sessions of one user.
func TestAbuseOfTheRelay(t *testing.T) {
	if os.Getuid() != 0 {
		t.Logf("uid %d cannot hide /dev/net/tun; not proven in this run, unless this host has none: the same through the relay", os.Getuid())
		return
	}
	abuse(t, thisLane(t), user{relay: true}, user{relay: true})
}

func abuse(t *testing.T, l lane, abuser, other user) {
	loud, quiet := serve(t, 19, openHost, modelHost, plainHost), serve(t, 0, quietHost)
	published := freePort(t)
	q := start(t, other, "quiet", quietPolicy(quiet), nil, "measure")
	defer q.stop()
	w := &watch{}
	w.enter("quiet")
	samples := readSamples(q, w)
	q.atWork(t)
	time.Sleep(l.quiet)

	a := start(t, abuser, "loud", loudPolicy(loud, published), []string{"ANTHROPIC_API_KEY=sk-ant-api03-" + strings.Repeat("k", 95)},
		append([]string{"attack", l.each.String(), l.together.String()}, strings.Fields(os.Getenv("BULKHEAD_ABUSE_ONLY"))...)...)
	defer a.stop()
	readPhases(a, w)
	gateway := a.gateway(t)
	visitors := visit(published)
	m := observe(t, a, gateway, w)
	still := a.gateway(t)
	close(visitors)
	a.end(t)
	w.enter("after")
	time.Sleep(l.quiet)
	q.stop()
	got := <-samples

	// The abused session.
	if still != gateway || gateway == 0 {
		t.Errorf("the abused gateway was process %d and is %d", gateway, still)
	}
	if !w.finished() {
		t.Errorf("the attacks did not come to their end; the session said:\n%s", a.said())
	}
	if m.memory == 0 || m.memory > gatewayMemory {
		t.Errorf("the abused gateway took %d MiB of memory; %d MiB are its bound", m.memory>>20, gatewayMemory>>20)
	}
	if m.files > confine.MaxFiles {
		t.Errorf("the abused gateway had %d descriptors; %d are its bound", m.files, confine.MaxFiles)
	}
	if m.controller > controllerMemory {
		t.Errorf("its controller took %d MiB", m.controller>>20)
	}
	log := readLog(t, a)
	if bound := denialsAtOnce + int(log.span.Seconds()*denialsPerSecond); log.denialLines > bound {
		t.Errorf("%d lines of refusals in %v: not more than %d should be", log.denialLines, log.span, bound)
	}
	for name, blows := range w.blows() {
		if blows == 0 {
			t.Errorf("the attack %s did nothing", name)
		}
	}
	// The other one.
	if f := got.failures(); len(f) > 0 {
		t.Errorf("%d requests of the other session failed, the first: %s; it said:\n%s", len(f), f[0], q.said())
	}
	for _, phase := range []string{"quiet", "after"} {
		if len(got.of(phase)) == 0 {
			t.Errorf("the other session did nothing in the phase %q; it said:\n%s", phase, q.said())
		}
	}
	ratio := report(t, w, got, m, log)
	if l.ratio && ratio > latencyRatio {
		t.Errorf("the other session's median latency is %.2f times that of the quiet time; the goal is %.0f", ratio, latencyRatio)
	}
}

func quietPolicy(u upstream) string {
	return fmt.Sprintf("version: 1\ngrants:\n  - http: https://%s/open/**\nupstreams:\n  %s: {connect: %q, ca: %q}\n", quietHost, quietHost, u.TLS, u.file)
}

func loudPolicy(u upstream, published int) string {
	return fmt.Sprintf(`version: 1
grants:
  - {http: "https://%[1]s/open/**", methods: [GET, POST, WEBSOCKET]}
  - {http: "http://%[2]s/open/**"}
  - {service: anthropic, operations: [messages], credential: claude}
  - {tcp: "localhost:%[3]s"}
publish: ["%[4]d:3000"]
env: {set: {ABUSE_HOST_PORT: "%[3]s"}}
credentials:
  claude: {from: {env: ANTHROPIC_API_KEY}}
upstreams:
  %[1]s: {connect: "%[5]s", ca: "%[6]s"}
  %[2]s: {connect: "%[7]s"}
  api.anthropic.com: {connect: "%[5]s", ca: "%[6]s"}
`, openHost, plainHost, u.Plain[strings.LastIndex(u.Plain, ":")+1:], published, u.TLS, u.file, u.Plain)
}

// logged is what the abused session's log holds.
type logged struct {
	lines, denialLines, denials int
	bytes                       int64
	span                        time.Duration
}

// readLog checks that the log is whole: numbers without gaps, and its two ends.
func readLog(t *testing.T, s *session) logged {
	t.Helper()
	data, err := os.ReadFile(s.events)
	if err != nil {
		t.Fatal(err)
	}
	type event struct {
		Time    time.Time
		Seq     int
		Action  string
		Verdict string
		Attrs   map[string]string
	}
	var l logged
	var first, last event
	for line := range strings.Lines(string(data)) {
		var e event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("line %d of the log: %v", l.lines+1, err)
		}
		if l.lines++; e.Seq != l.lines {
			t.Fatalf("line %d of the log is number %d", l.lines, e.Seq)
		}
		if e.Verdict == "deny" {
			l.denialLines++
			n := 1
			fmt.Sscan(e.Attrs["count"], &n)
			l.denials += n
		}
		if l.lines == 1 {
			first = e
		}
		last = e
	}
	if first.Action != "session.start" || last.Action != "session.end" {
		t.Errorf("the log begins with %q and ends with %q", first.Action, last.Action)
	}
	l.bytes, l.span = int64(len(data)), last.Time.Sub(first.Time)
	return l
}

// TestMain builds the two programs where every user can run them.
func TestMain(m *testing.M) {
	dir, err := build()
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e/abuse:", err)
		os.Exit(1)
	}
	shared = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

func bulkhead() string { return filepath.Join(shared, "bin", "bulkhead") }
func program() string  { return filepath.Join(shared, "bin", "program") }
