package egress

import (
	"strconv"
	"sync"
	"time"

	v1 "github.com/bulkhead-dev/bulkhead/api/v1"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Bounds of refusals in the log: burst of them one by one, perSecond of them in
// the long run; the others are counted by what they are and written once a
// second, with the time of the first and the last. What is counted has a line
// for each resource, burstRows of them and rowsPerSecond in the long run; the
// others are "(several)", a line for each action and code. No refusal is lost
// in number. What is allowed is never counted together: each act has its own
// record.
const (
	burst         = 200
	perSecond     = 20
	burstRows     = 256
	rowsPerSecond = 4
	queued        = 128
)

const several = "(several)"

// journal writes refusals so that no flood of them fills the log or stalls the
// gateway.
type journal struct {
	record func(v1.Event) error
	now    func() time.Time

	mu      sync.Mutex
	tokens  float64 // for single lines
	rows    float64 // for lines that count one resource
	last    time.Time
	kinds   map[kind]*count
	queue   chan v1.Event
	stopped chan struct{}
	ended   chan struct{} // run has
	stop    sync.Once
}

type kind struct {
	action   vocabulary.Action
	resource vocabulary.Resource
	code     string
}

type count struct {
	event       v1.Event
	n           int
	first, last time.Time
}

func newJournal(record func(v1.Event) error) *journal {
	j := &journal{
		record: record, now: time.Now, tokens: burst, rows: burstRows, last: time.Now(),
		kinds: map[kind]*count{}, queue: make(chan v1.Event, queued), stopped: make(chan struct{}), ended: make(chan struct{}),
	}
	go j.run()
	return j
}

// deny records a refusal before it is answered, or counts it.
func (j *journal) deny(e v1.Event) {
	if j.take(e) {
		if j.record(e) != nil {
			j.many(e, 1) // tried again with the next counts
		}
	}
}

// note is deny for callers that must not wait.
func (j *journal) note(e v1.Event) {
	select {
	case j.queue <- e:
	default:
		j.many(e, 1)
	}
}

// take reports whether e may be written by itself; otherwise it is counted.
func (j *journal) take(e v1.Event) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	now := j.refill()
	if j.tokens < 1 {
		j.add(e, count{n: 1, first: now, last: now})
		return false
	}
	j.tokens--
	return true
}

func (j *journal) refill() time.Time {
	now := j.now()
	past := now.Sub(j.last).Seconds()
	j.tokens, j.rows, j.last = min(burst, j.tokens+past*perSecond), min(burstRows, j.rows+past*rowsPerSecond), now
	return now
}

// many counts n refusals that are all described by e. It does not wait.
func (j *journal) many(e v1.Event, n int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	now := j.refill()
	j.add(e, count{n: n, first: now, last: now})
}

// add counts more, in a row of its own if there is one to be had.
func (j *journal) add(e v1.Event, more count) {
	k := kind{e.Action, e.Resource, e.Reason.Code}
	c, ok := j.kinds[k]
	if !ok && k.resource != several {
		if j.rows >= 1 {
			j.rows--
		} else {
			e.Attrs = map[string]string{"example": string(e.Resource)}
			e.Resource, e.Reason.Message = several, "several different resources"
			k.resource = several
			c, ok = j.kinds[k]
		}
	}
	if !ok {
		more.event = e
		j.kinds[k] = &more
		return
	}
	c.n += more.n
	if more.first.Before(c.first) {
		c.first = more.first
	}
	if more.last.After(c.last) {
		c.last = more.last
	}
}

func (j *journal) flush() {
	j.mu.Lock()
	kinds := j.kinds
	j.kinds = map[kind]*count{}
	j.mu.Unlock()
	for _, c := range kinds {
		e := c.event
		attrs := map[string]string{
			"count": strconv.Itoa(c.n),
			"first": c.first.UTC().Format(time.RFC3339Nano), "last": c.last.UTC().Format(time.RFC3339Nano),
		}
		for name, v := range e.Attrs {
			attrs[name] = v
		}
		e.Attrs = attrs
		if j.record(e) != nil {
			j.mu.Lock()
			j.refill()
			j.add(c.event, *c)
			j.mu.Unlock()
		}
	}
}

func (j *journal) run() {
	defer close(j.ended)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case e := <-j.queue:
			j.deny(e)
		case <-tick.C:
			j.flush()
		case <-j.stopped:
			return
		}
	}
}

// close writes what is left.
func (j *journal) close() {
	j.stop.Do(func() { close(j.stopped) })
	<-j.ended
	for {
		select {
		case e := <-j.queue:
			j.many(e, 1)
			continue
		default:
		}
		break
	}
	j.flush()
}
