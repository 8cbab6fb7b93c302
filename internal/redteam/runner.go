package redteam

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"time"
)

// Runner starts agents as a person would: the bulkhead binary at that path
// with `run --policy … --events … -- AGENT`, or the agent itself when it is
// not to be contained. A session that outlives its context is ended.
func Runner(binary string) RunSession {
	return func(ctx context.Context, s SessionSpec) (SessionResult, error) {
		argv := s.Argv
		if s.Contained {
			argv = []string{binary, "run", "--policy", s.Policy, "--events", s.Events}
			for _, p := range s.Presets {
				argv = append(argv, "--preset", p)
			}
			argv = append(append(argv, "--"), s.Argv...)
		}
		out := &lastBytes{max: 64 << 10}
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.Dir, cmd.Env = s.Dir, s.Env
		cmd.Stdout, cmd.Stderr = out, out
		cmd.WaitDelay = 3 * time.Second
		ownGroup(cmd)
		err := cmd.Run()
		res := SessionResult{ExitCode: -1, Output: out.String()}
		if cmd.ProcessState != nil {
			res.ExitCode = cmd.ProcessState.ExitCode()
		}
		var exit *exec.ExitError
		switch {
		case ctx.Err() != nil:
			endGroup(cmd)
			return res, fmt.Errorf("it did not end: %w", context.Cause(ctx))
		case err != nil && !errors.As(err, &exit):
			return res, err
		}
		return res, nil
	}
}

// lastBytes keeps the end of what is written to it.
type lastBytes struct {
	max int
	mu  sync.Mutex
	b   []byte
}

func (l *lastBytes) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b = append(l.b, p...)
	if over := len(l.b) - l.max; over > 0 {
		l.b = append(l.b[:0], l.b[over:]...)
	}
	return len(p), nil
}

func (l *lastBytes) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.b)
}
