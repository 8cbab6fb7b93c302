package session

import (
	"fmt"
	"sync"
	"time"

	v1 "github.com/bulkhead-dev/bulkhead/api/v1"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Actions of what was seen inside.
const (
	ActionFork    vocabulary.Action = "process.fork"
	ActionProgram vocabulary.Action = "process.exec"
	ActionExit    vocabulary.Action = "process.exit"
	// ActionLost counts what happened and is not in the log.
	ActionLost vocabulary.Action = "events.lost"
)

// What is seen inside is written line by line up to seenRate a second, seenBurst at
// once; the rest is counted once a second.
const (
	seenRate  = 50
	seenBurst = 1000
)

// sightings records what was seen inside, without making anybody wait.
type sightings struct {
	record func(v1.Event) error

	mu     sync.Mutex
	budget float64
	filled time.Time
	more   map[vocabulary.Action]int
	queue  chan v1.Event // nil: closed
	done   chan struct{}
}

func newSightings(record func(v1.Event) error) *sightings {
	s := &sightings{record: record, budget: seenBurst, filled: time.Now(), more: map[vocabulary.Action]int{},
		queue: make(chan v1.Event, 2*seenBurst), done: make(chan struct{})}
	go s.write()
	return s
}

func (s *sightings) write() {
	defer close(s.done)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	queue := s.queue
	for {
		select {
		case e, ok := <-queue:
			if !ok {
				s.tellMore()
				return
			}
			// What it is about has happened: with no record, only the line is missing.
			_ = s.record(e)
		case <-tick.C:
			s.tellMore()
		}
	}
}

// tellMore records how many there were beyond the rate.
func (s *sightings) tellMore() {
	s.mu.Lock()
	more := s.more
	s.more = map[vocabulary.Action]int{}
	s.mu.Unlock()
	for action, n := range more {
		_ = s.record(seenEvent(action, "(several)", map[string]string{"count": fmt.Sprint(n)}))
	}
}

func seenEvent(action vocabulary.Action, resource string, attrs map[string]string) v1.Event {
	return v1.Event{Actor: "sandbox", Action: action, Resource: vocabulary.Resource(resource), Verdict: vocabulary.Allow,
		Reason: vocabulary.Reason{Code: "seen"}, Attrs: attrs}
}

// add takes one sighting.
func (s *sightings) add(x sandbox.Seen) {
	attrs := map[string]string{}
	if x.PID > 0 {
		attrs["pid"] = fmt.Sprint(x.PID)
	}
	if x.Name != "" {
		attrs["name"] = shown(x.Name)
	}
	action, resource := ActionLost, "(several)"
	switch x.What {
	case sandbox.SeenFork:
		action, resource = ActionFork, fmt.Sprint(x.Child)
	case sandbox.SeenExec:
		action, resource = ActionProgram, shown(x.Path)
	case sandbox.SeenExit:
		action, resource = ActionExit, fmt.Sprint(x.PID)
		if x.Code >= 0 {
			attrs["exit"] = fmt.Sprint(x.Code)
		}
	case sandbox.SeenWrite:
		action, resource = ActionWrite, shown(x.Path)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.budget = min(seenBurst, s.budget+seenRate*now.Sub(s.filled).Seconds())
	s.filled = now
	switch {
	case s.queue == nil:
	case x.What == sandbox.SeenLost:
		s.more[ActionLost] += x.Count
	case s.budget < 1 || len(s.queue) == cap(s.queue):
		s.more[action]++
	default:
		s.budget--
		s.queue <- seenEvent(action, resource, attrs)
	}
}

// close returns when all is written.
func (s *sightings) close() {
	s.mu.Lock()
	if s.queue != nil {
		close(s.queue)
		s.queue = nil
	}
	s.mu.Unlock()
	<-s.done
}

// shown bounds a name that a command inside chose.
func shown(name string) string {
	const most = 1024
	if len(name) > most {
		return name[:most] + "…"
	}
	return name
}
