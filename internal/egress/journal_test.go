package egress

import (
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	v1 "github.com/bulkhead-dev/bulkhead/api/v1"
)

// ledger is a log that can be full, and a clock.
type ledger struct {
	mu    sync.Mutex
	full  bool
	lines int
	total int
	time  time.Time
}

func (l *ledger) record(e v1.Event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.full {
		return errors.New("no space left on device")
	}
	l.lines++
	n := 1
	if s := e.Attrs["count"]; s != "" {
		n, _ = strconv.Atoi(s)
	}
	l.total += n
	return nil
}

func (l *ledger) now() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.time
}

func (l *ledger) fill(full bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.full = full
}

func (l *ledger) pass(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.time = l.time.Add(d)
}

// still is a journal whose clock is the ledger's; nothing ticks in it.
func (l *ledger) journal() *journal {
	j := &journal{
		record: l.record, now: l.now, tokens: burst, rows: burstRows, last: l.time, kinds: map[kind]*count{},
		queue: make(chan v1.Event, queued), stopped: make(chan struct{}), ended: make(chan struct{}),
	}
	close(j.ended)
	return j
}

// Whatever floods it, with names of its own each time, for a minute: the lines
// are bounded and the sum is right.
func TestJournalIsBoundedAndExact(t *testing.T) {
	l := &ledger{time: time.Unix(1e9, 0)}
	j := l.journal()
	sum := 0
	for second := range 60 {
		for i := range 1000 {
			j.deny(refusal("dns.resolve", fmt.Sprintf("n%d-%d.test", second, i), "no-grant", ""))
			j.many(refusal("dns.resolve", several, "query-limit", ""), 5)
			sum += 6
		}
		l.pass(time.Second)
		j.flush()
	}
	j.close()
	if l.total != sum {
		t.Errorf("%d refusals were recorded as %d", sum, l.total)
	}
	// Two lines that count "(several)" each second, besides the bounds.
	if bound := burst + burstRows + 61*(perSecond+rowsPerSecond+2); l.lines > bound {
		t.Errorf("%d lines, not more than %d should be", l.lines, bound)
	}
	if rows := len(j.kinds); rows > 0 {
		t.Errorf("%d rows are left", rows)
	}
}

// A log that is full for a while loses none, and what is kept stays small.
func TestJournalSurvivesAFullLog(t *testing.T) {
	l := &ledger{time: time.Unix(1e9, 0)}
	j := l.journal()
	sum := 0
	l.fill(true)
	for second := range 300 {
		for i := range 20 {
			j.deny(refusal("tcp.connect", fmt.Sprintf("n%d-%d.test:1", second, i), "no-grant", ""))
			sum++
		}
		l.pass(time.Second)
		j.flush()
	}
	if rows := len(j.kinds); rows > 2*burstRows {
		t.Errorf("%d rows are kept", rows)
	}
	l.fill(false)
	j.close()
	if l.total != sum {
		t.Errorf("%d refusals were recorded as %d", sum, l.total)
	}
}

// Closing waits for what is being written and writes the rest.
func TestJournalCloses(t *testing.T) {
	l := &ledger{time: time.Now()}
	j := newJournal(func(e v1.Event) error {
		if e.Attrs["count"] == "" {
			time.Sleep(50 * time.Millisecond)
		}
		return l.record(e)
	})
	const n = 3 * queued
	for i := range n {
		j.note(refusal("udp.send", fmt.Sprintf("192.0.2.1:%d", 1+i), "protocol-refused", ""))
	}
	j.close()
	if l.total != n {
		t.Errorf("%d refusals were recorded as %d", n, l.total)
	}
}

// Queries that the link's stack dropped are on record in their number.
func TestDroppedQueriesAreCounted(t *testing.T) {
	l := &ledger{time: time.Unix(1e9, 0)}
	g := &gateway{journal: l.journal()}
	(*packets)(g).Dropped(7)
	(*packets)(g).Dropped(5)
	g.close()
	if l.total != 12 || l.lines != 1 {
		t.Errorf("12 dropped queries were recorded as %d in %d lines", l.total, l.lines)
	}
}
