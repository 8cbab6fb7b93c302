package session

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/bulkhead-dev/bulkhead/api/v1"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/switches"
	"github.com/bulkhead-dev/bulkhead/internal/tally"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// ActionLimit is a limit that was reached; its resource is the policy's key.
const ActionLimit vocabulary.Action = "session.limit"

const (
	// limitPeriod is how often limits that nothing else enforces are looked at.
	limitPeriod = time.Second
	// busy is the part of one processor below which nothing is being computed.
	busy = 0.01
)

// limitReached ends a session.
type limitReached struct {
	key, text string
	rule      vocabulary.Position
}

func (l *limitReached) Error() string {
	return fmt.Sprintf("%s (limits.%s, %s)", l.text, l.key, l.rule)
}

// watchLimits enforces what the session itself does. The function that it returns
// ends that.
func (s *session) watchLimits(ctx context.Context) func() {
	l := s.opts.Policy.Limits
	ctx, cancel := context.WithCancel(ctx)
	if l.Wall > 0 {
		timer := time.AfterFunc(l.Wall, func() {
			s.reach(&limitReached{"wall", fmt.Sprintf("the session has run for %v", l.Wall), l.Pos.Wall})
		})
		context.AfterFunc(ctx, func() { timer.Stop() })
	}
	if (l.Disk.Value > 0 || l.Inodes.Value > 0) && !switches.Off("disk") {
		go s.watchDisk(ctx, l)
	}
	if l.Idle.Value > 0 {
		go s.watchIdle(ctx, l)
	}
	if l.Descriptors.Value > 0 {
		go s.watchDescriptors(ctx, l)
	}
	if l.PIDs > 0 {
		go s.watchTasks(ctx, l)
	}
	return cancel
}

// reach records that a limit was reached, and ends the session.
func (s *session) reach(l *limitReached) {
	if err := s.recordLimit(l); err != nil {
		s.opts.Notice("%v", err)
	}
	s.stop(l)
}

// tell records that a limit was reached with which the session goes on.
func (s *session) tell(l *limitReached) {
	s.opts.Notice("%v", l)
	if err := s.recordLimit(l); err != nil {
		s.opts.Notice("%v", err)
	}
}

func (s *session) recordLimit(l *limitReached) error {
	return s.log.Record(v1.Event{
		Actor: "controller", Action: ActionLimit, Resource: vocabulary.Resource("limits." + l.key), Verdict: vocabulary.Deny,
		Reason: vocabulary.Reason{Code: "limit", Message: l.text, Rule: l.rule, Remedy: "raise limits." + l.key + ", or let the work need less"},
	})
}

// recordExceeded records the limits that the sandbox's kernel or warden enforced.
func (s *session) recordExceeded() error {
	l, ok := s.instance.(interface{ Exceeded() []string })
	if !ok {
		return nil
	}
	pos := s.opts.Policy.Limits.Pos
	for _, text := range l.Exceeded() {
		key, rule := "memory", pos.Memory
		if strings.HasPrefix(text, "pids") {
			key, rule = "pids", pos.PIDs
		}
		hit := &limitReached{key, text, rule}
		if !s.told {
			s.opts.Notice("a limit was reached: %v", hit)
		}
		if err := s.recordLimit(hit); err != nil {
			return err
		}
	}
	return nil
}

// watchDisk adds up the memory file systems and the layer.
func (s *session) watchDisk(ctx context.Context, l policy.Limits) {
	upper := ""
	if s.view.layerDir != "" {
		upper = filepath.Join(s.view.layerDir, "upper")
	}
	unseen, full := 0, false
	for {
		began := time.Now()
		u := s.instance.Usage()
		if upper != "" {
			most := int64(0)
			if l.Inodes.Value > 0 {
				most = l.Inodes.Value + 1
			}
			sum, err := tallyOf(upper, most)
			if unseen++; err == nil && !sum.Partial {
				unseen = 0
			}
			u.Bytes, u.Inodes = u.Bytes+sum.Bytes, u.Inodes+sum.Inodes
		}
		disk, inodes := l.Disk.Value, l.Inodes.Value
		switch {
		case disk > 0 && u.Bytes > disk:
			s.reach(&limitReached{"disk", fmt.Sprintf("%d MiB are kept, and %d are allowed", (u.Bytes+1<<20-1)>>20, disk>>20), l.Disk.Pos})
			return
		case inodes > 0 && u.Inodes > inodes:
			s.reach(&limitReached{"inodes", fmt.Sprintf("more than %d files and folders are kept", inodes), l.Inodes.Pos})
			return
		case unseen > 2:
			// What cannot be counted may be anything.
			key, pos := "disk", l.Disk.Pos
			if disk == 0 {
				key, pos = "inodes", l.Inodes.Pos
			}
			s.reach(&limitReached{key, "the staged layer has folders that can't be read or are too deep to be counted", pos})
			return
		case disk > 0 && u.Bytes == disk && !full: // its kernel lets no more in
			full = true
			s.tell(&limitReached{"disk", "a private folder is full", l.Disk.Pos})
		}
		if !pause(ctx, max(limitPeriod, 20*time.Since(began))) {
			return
		}
	}
}

// watchDescriptors tells, once, of a process that was seen with all descriptors that
// it may have.
func (s *session) watchDescriptors(ctx context.Context, l policy.Limits) {
	for pause(ctx, limitPeriod) {
		if full := s.instance.Usage().Full; full != "" {
			s.tell(&limitReached{"descriptors", fmt.Sprintf("process %q has all %d descriptors open that it may have", full, l.Descriptors.Value), l.Descriptors.Pos})
			return
		}
	}
}

// watchTasks tells, once, of a sandbox that was seen with hardly room for another
// process. Where refused ones are counted, recordExceeded tells.
func (s *session) watchTasks(ctx context.Context, l policy.Limits) {
	for pause(ctx, limitPeriod) {
		if s.instance.Usage().Crowded {
			s.tell(&limitReached{"pids", fmt.Sprintf("hardly one of %d processes and threads is left", l.PIDs), l.Pos.PIDs})
			return
		}
	}
}

// withoutRoom says of a command that could not be started for want of room which limit
// may be why.
func (s *session) withoutRoom(err error) error {
	var exec *sandbox.ExecError
	l := s.opts.Policy.Limits
	if !errors.As(err, &exec) || l.PIDs == 0 || !strings.Contains(exec.Error(), "resource temporarily unavailable") {
		return err
	}
	return fmt.Errorf("%w\nlimits.pids (%d, %s) leaves no room for another process: raise it, or let what runs end", err, l.PIDs, l.Pos.PIDs)
}

func tallyOf(dir string, most int64) (tally.Sum, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return tally.Sum{}, err
	}
	defer root.Close()
	return tally.Of(root, most), nil
}

// watchIdle ends a session in which for so long no output passed, nothing was
// recorded (a start, a decision on a name, a connection or a request), and the
// commands used less than busy of a processor.
func (s *session) watchIdle(ctx context.Context, l policy.Limits) {
	limit := time.Duration(l.Idle.Value)
	period := min(max(limit/10, limitPeriod), 15*time.Second)
	active, events, last, looked := time.Now(), s.log.Count(), s.instance.Usage(), time.Now()
	for pause(ctx, period) {
		now := time.Now()
		n, u := s.log.Count(), s.instance.Usage()
		if u.Looks < last.Looks+2 {
			continue // what it says is not about this time yet
		}
		moved := s.started.Add(time.Duration(s.moved.Load()))
		if n != events || moved.After(looked) || (u.CPU-last.CPU).Seconds() > busy*now.Sub(looked).Seconds() {
			active = now
		}
		events, last, looked = n, u, now
		if now.Sub(active) >= limit {
			s.reach(&limitReached{"idle", fmt.Sprintf("nothing has happened inside for %v", limit), l.Idle.Pos})
			return
		}
	}
}

func (s *session) noteMoved() { s.moved.Store(int64(time.Since(s.started))) }

// pause returns false if ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// describeLimits says what is limited, and by what.
func (s *session) describeLimits() []string {
	l := s.opts.Policy.Limits
	var lines []string
	if i, ok := s.instance.(interface{ Means() []string }); ok {
		lines = i.Means()
	}
	add := func(set bool, format string, args ...any) {
		if set {
			lines = append(lines, fmt.Sprintf(format, args...))
		}
	}
	where := "each memory file system by its size, together"
	switch {
	case s.view.layerDir != "":
		where += " and with the staged layer"
	case s.opts.Policy.Workspace.Mode != vocabulary.ReadOnly:
		where += ", without what is written straight into the workspace"
	}
	add(l.Disk.Value > 0, "disk %d MiB: %s by looking; a file by RLIMIT_FSIZE", l.Disk.Value>>20, where)
	add(l.Inodes.Value > 0, "inodes %d: by looking", l.Inodes.Value)
	add(l.Descriptors.Value > 0, "descriptors %d: RLIMIT_NOFILE, each process", l.Descriptors.Value)
	add(l.Wall > 0, "wall %v: the session", l.Wall)
	add(l.Idle.Value > 0, "idle %v: the session", time.Duration(l.Idle.Value))
	return lines
}
