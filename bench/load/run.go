package load

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Process is a running program, seen from outside.
type Process struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan []byte
	said  strings.Builder
}

// patience bounds one order beyond its own bound.
const patience = 60 * time.Second

// Start runs argv, which ends in the program.
func Start(ctx context.Context, dir string, env, argv []string) (*Process, error) {
	p := &Process{cmd: exec.CommandContext(ctx, argv[0], argv[1:]...), lines: make(chan []byte)}
	p.cmd.Dir = dir
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stderr = &p.said
	p.cmd.WaitDelay = 5 * time.Second
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.lines)
		for sc := bufio.NewScanner(out); sc.Scan(); {
			p.lines <- append([]byte(nil), sc.Bytes()...)
		}
	}()
	return p, nil
}

// PID is the outermost process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Do has one order carried out.
func (p *Process) Do(o Order) (Answer, error) {
	b, err := json.Marshal(o)
	if err != nil {
		return Answer{}, err
	}
	if _, err := p.in.Write(append(b, '\n')); err != nil {
		return Answer{}, err
	}
	var a Answer
	select {
	case line, ok := <-p.lines:
		if !ok {
			return a, errors.New("the client ended")
		}
		if err := json.Unmarshal(line, &a); err != nil {
			return a, fmt.Errorf("the client's answer %q: %w", line, err)
		}
	case <-time.After(o.For + patience):
		return a, fmt.Errorf("no answer to %q within %v", o.Kind, o.For+patience)
	}
	if a.Error != "" {
		return a, fmt.Errorf("%s: %s", o.Kind, a.Error)
	}
	return a, nil
}

// Close lets the program end and returns what it said on standard error.
func (p *Process) Close() string {
	p.in.Close()
	done := make(chan struct{})
	go func() {
		for range p.lines {
		}
		p.cmd.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		p.cmd.Process.Kill()
		<-done
	}
	return p.said.String()
}
