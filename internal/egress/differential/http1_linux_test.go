package differential

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/hostport"
)

var (
	start  = sync.OnceValues(func() (*servers, error) { s, f, err := startServers(); stop = f; return s, err })
	stop   func()
	inUse  sync.Mutex
	opened = map[string]*lane{}
)

func TestMain(m *testing.M) {
	code := m.Run()
	if stop != nil {
		stop()
	}
	os.Exit(code)
}

// lanesOf returns the gateways of one scheme. They share the servers' lanes, so
// only one test at a time uses them.
func lanesOf(t testing.TB, scheme string) []*lane {
	t.Helper()
	s, err := start()
	if err != nil {
		t.Fatal(err)
	}
	inUse.Lock()
	t.Cleanup(inUse.Unlock)
	var out []*lane
	for i := range lanes {
		key := fmt.Sprint(scheme, i)
		if opened[key] == nil {
			if opened[key], err = newLane(s, i, grants(scheme)); err != nil {
				t.Fatal(err)
			}
		}
		out = append(out, opened[key])
	}
	return out
}

func destination(t testing.TB, s string) hostport.HostPort {
	t.Helper()
	hp, err := hostport.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return hp
}

// sends is a client that writes bytes.
func sends(b []byte) play {
	return func(c net.Conn) error {
		_, err := c.Write(b)
		return err
	}
}

// answererOf lets both servers answer about as often, the same one for the same
// input.
func answererOf(b []byte) string {
	sum := 0
	for _, ch := range b {
		sum += int(ch)
	}
	return []string{"nginx", "node"}[sum%2]
}

// try1 sends b over HTTP/1 and reports differences.
func try1(t testing.TB, l *lane, dst hostport.HostPort, b []byte) *result {
	r, err := l.through(dst, false, false, answererOf(b), sends(b))
	if err != nil {
		t.Errorf("%q: %v", b, err)
		return nil
	}
	for _, d := range r.differences(true) {
		t.Errorf("%q\n\t%s", b, d)
	}
	return r
}

func TestSeeds1(t *testing.T) {
	ls := lanesOf(t, "http")
	dst := destination(t, name+":80")
	passed, refused := 0, 0
	for _, s := range seeds1() {
		r := try1(t, ls[0], dst, []byte(s))
		if r == nil {
			continue
		}
		if len(r.wire.readings) > 0 {
			passed++
		}
		if len(r.refusal) > 0 {
			refused++
		}
	}
	if passed < 40 || refused < 100 {
		t.Errorf("of %d seeds %d sent something upstream and %d were refused something: they are to show both", len(seeds1()), passed, refused)
	}
	t.Logf("%d seeds: %d sent something upstream, %d were refused something", len(seeds1()), passed, refused)
}

// A walk at random from the seeds, always the same one.
func TestWalk1(t *testing.T) {
	ls := lanesOf(t, "http")
	dst := destination(t, name+":80")
	inputs := walk(5000, seeds1(), ordinary1(), tokens1)
	stats(t, each(ls, inputs, func(l *lane, in string) *result { return try1(t, l, dst, []byte(in)) }))
}

func FuzzHTTP1(f *testing.F) {
	for _, s := range seeds1() {
		if fuzzing() {
			f.Add([]byte(s))
		}
	}
	ls := lanesOf(f, "http")
	dst := destination(f, name+":80")
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 32<<10 {
			return
		}
		try1(t, ls[0], dst, b)
	})
}

// fuzzing is false in an ordinary run, where TestSeeds1 and TestSeeds2 have the
// seeds, over all lanes at once, and the targets only what was found.
func fuzzing() bool {
	return flag.Lookup("test.fuzz").Value.String() != "" || flag.Lookup("test.fuzzworker").Value.String() == "true"
}

// each spreads inputs over the lanes.
func each(ls []*lane, inputs []string, try func(*lane, string) *result) []*result {
	work := make(chan string)
	var mu sync.Mutex
	var out []*result
	var wg sync.WaitGroup
	for _, l := range ls {
		wg.Go(func() {
			for in := range work {
				if r := try(l, in); r != nil {
					mu.Lock()
					out = append(out, r)
					mu.Unlock()
				}
			}
		})
	}
	for _, in := range inputs {
		work <- in
	}
	close(work)
	wg.Wait()
	return out
}

// stats says what a walk has shown, and that it has shown something.
func stats(t testing.TB, results []*result) {
	sent, requests, denied, cut := 0, 0, 0, 0
	for _, r := range results {
		if len(r.wire.readings) > 0 {
			sent++
		}
		requests += len(r.wire.readings)
		denied += min(1, len(r.refusal))
		if r.cut {
			cut++
		}
	}
	t.Logf("%d inputs: %d sent %d requests upstream, %d were refused something, %d ended within a request", len(results), sent, requests, denied, cut)
	if sent < len(results)/5 || denied < len(results)/5 {
		t.Error("the walk is to show both what passes and what does not")
	}
}

// walk makes n inputs, by a fixed generator: every second one from a seed that
// passes, so that a small change of it often does too.
func walk(n int, seeds, ordinary, tokens []string) []string {
	rnd := rand.New(rand.NewPCG(20, 26))
	out := make([]string, 0, n)
	for len(out) < n {
		from, changes := seeds, 3
		if len(out)%2 == 0 {
			from, changes = ordinary, 2
		}
		b := []byte(from[rnd.IntN(len(from))])
		for range 1 + rnd.IntN(changes) {
			b = mutate(rnd, b, seeds, tokens)
		}
		out = append(out, string(b[:min(len(b), 16<<10)]))
	}
	return out
}

func mutate(rnd *rand.Rand, b []byte, seeds, tokens []string) []byte {
	if len(b) == 0 {
		b = []byte(seeds[0])
	}
	i := rnd.IntN(len(b))
	j := min(len(b), i+1+rnd.IntN(12))
	token := []byte(tokens[rnd.IntN(len(tokens))])
	switch rnd.IntN(10) {
	case 0, 1:
		return slices.Insert(slices.Clone(b), i, token...)
	case 2: // at a line's beginning, or behind the first space
		if at := strings.Index(string(b[i:]), "\r\n"); at >= 0 {
			return slices.Insert(slices.Clone(b), i+at+2, token...)
		}
		return append(slices.Clone(b), token...)
	case 3:
		if at := strings.IndexByte(string(b), '/'); at >= 0 {
			if end := strings.IndexByte(string(b[at:]), ' '); end > 0 {
				return slices.Insert(slices.Clone(b), at+1+rnd.IntN(end), token...)
			}
		}
		return b
	case 4:
		return slices.Delete(slices.Clone(b), i, j)
	case 5:
		return slices.Insert(slices.Clone(b), i, b[i:j]...)
	case 6:
		b = slices.Clone(b)
		b[i] = byte(rnd.IntN(256))
		return b
	case 7:
		b = slices.Clone(b)
		b[i] ^= 1 << rnd.IntN(8)
		return b
	case 8: // another request behind it
		return append(slices.Clone(b), seeds[rnd.IntN(len(seeds))]...)
	default: // a line twice
		if lines := strings.SplitAfter(string(b), "\r\n"); len(lines) > 2 {
			at := rnd.IntN(len(lines) - 1)
			return []byte(strings.Join(slices.Insert(lines, rnd.IntN(len(lines)-1), lines[at]), ""))
		}
		return b
	}
}
