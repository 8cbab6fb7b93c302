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
// second, with the time of the first and the last. At most maxKinds kinds are
// told apart in a second. What is allowed is never counted together: each act
// has its own record.
const (
	burst     = 200
	perSecond = 20
	maxKinds  = 256
	queued    = 128
)

// journal writes refusals so that no flood of them fills the log or stalls the
// gateway.
type journal struct {
	record func(v1.Event) error
	now    func() time.Time

	mu      sync.Mutex
	tokens  float64
	last    time.Time
	kinds   map[kind]*count
	queue   chan v1.Event
	stopped chan struct{}
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
		record: record, now: time.Now, tokens: burst, last: time.Now(),
		kinds: map[kind]*count{}, queue: make(chan v1.Event, queued), stopped: make(chan struct{}),
	}
	go j.run()
	return j
}

// deny records a refusal before it is answered, or counts it.
func (j *journal) deny(e v1.Event) {
	if j.take(e) {
		if j.record(e) != nil {
			j.count(e) // tried again with the next counts
		}
	}
}

// note is deny for callers that must not wait.
func (j *journal) note(e v1.Event) {
	select {
	case j.queue <- e:
	default:
		j.count(e)
	}
}

// take reports whether e may be written by itself; otherwise it is counted.
func (j *journal) take(e v1.Event) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	now := j.now()
	j.tokens = min(burst, j.tokens+now.Sub(j.last).Seconds()*perSecond)
	j.last = now
	if j.tokens < 1 {
		j.add(e, now)
		return false
	}
	j.tokens--
	return true
}

func (j *journal) count(e v1.Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.add(e, j.now())
}

func (j *journal) add(e v1.Event, now time.Time) {
	k := kind{e.Action, e.Resource, e.Reason.Code}
	c, ok := j.kinds[k]
	if !ok && len(j.kinds) >= maxKinds {
		e.Resource, e.Attrs = "(several)", nil
		e.Reason.Message = "several different resources"
		k.resource = e.Resource
		c, ok = j.kinds[k]
	}
	if !ok {
		c = &count{event: e, first: now}
		j.kinds[k] = c
	}
	c.n++
	c.last = now
}

func (j *journal) flush() {
	j.mu.Lock()
	kinds := j.kinds
	j.kinds = map[kind]*count{}
	j.mu.Unlock()
	for k, c := range kinds {
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
			if len(j.kinds) < 2*maxKinds {
				if later, ok := j.kinds[k]; ok {
					later.n += c.n
					later.first = c.first
				} else {
					j.kinds[k] = c
				}
			}
			j.mu.Unlock()
		}
	}
}

func (j *journal) run() {
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
	for {
		select {
		case e := <-j.queue:
			j.count(e)
			continue
		default:
		}
		break
	}
	j.flush()
}
