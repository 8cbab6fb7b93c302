package gitssh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	v1 "github.com/bulkhead-dev/bulkhead/api/v1"
	"github.com/bulkhead-dev/bulkhead/internal/capability"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// maxRequests bounds what a channel may ask for before its command.
const maxRequests = 64

// failed is git's and ssh's own exit status for what broke off.
const failed = 128

// command is one channel of the sandbox, which is to run one command.
type command struct {
	*connection
	channel  ssh.Channel
	protocol string // GIT_PROTOCOL, or ""
}

// serve waits for the command, runs it, and closes the channel.
func (c *command) serve(ctx context.Context, requests <-chan *ssh.Request) {
	defer c.channel.Close()
	timer := time.AfterFunc(restTimeout, func() { c.channel.Close() })
	defer timer.Stop()
	for n := 0; n < maxRequests; n++ {
		r, ok := <-requests
		if !ok {
			return
		}
		switch r.Type {
		case "env":
			r.Reply(c.setenv(r.Payload), nil)
		case "exec":
			timer.Stop()
			var exec struct{ Line string }
			if err := ssh.Unmarshal(r.Payload, &exec); err != nil {
				r.Reply(false, nil)
				return
			}
			r.Reply(true, nil)
			ctx, stop := context.WithCancel(ctx)
			go func() {
				// The channel is gone when there are no more requests.
				ssh.DiscardRequests(requests)
				stop()
			}()
			c.exit(c.exec(ctx, exec.Line))
			stop()
			return
		case "shell", "subsystem":
			r.Reply(true, nil) // so that the words below are shown
			c.refuse(vocabulary.Reason{Code: CodeNotGit, Message: "a " + r.Type + " is not offered over SSH, only git's commands",
				Remedy: "use git clone, fetch and push"}, r.Type)
			c.exit(failed)
			go ssh.DiscardRequests(requests)
			return
		case "auth-agent-req@openssh.com", "x11-req":
			c.refused("ssh.forward", CodeProtocolRefused, r.Type+" is refused: nothing is forwarded, only git commands pass")
			r.Reply(false, nil)
		default:
			if r.WantReply {
				r.Reply(false, nil)
			}
		}
	}
}

// setenv keeps GIT_PROTOCOL if it asks for a protocol version and nothing else.
func (c *command) setenv(payload []byte) bool {
	var kv struct{ Name, Value string }
	if ssh.Unmarshal(payload, &kv) != nil || kv.Name != "GIT_PROTOCOL" {
		return false
	}
	switch kv.Value {
	case "version=0", "version=1", "version=2":
		c.protocol = kv.Value
		return true
	}
	return false
}

func (c *command) exit(status int) {
	c.channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{uint32(status)}))
}

// refuse records and says a refusal before there is a decision.
func (c *command) refuse(reason vocabulary.Reason, what string) {
	c.deny("ssh.exec", vocabulary.Resource("ssh://"+c.dst.String()), reason, map[string]string{"transport": "ssh", "command": printable(clip(what))})
	say(c.channel.Stderr(), reason)
}

// exec judges a command, runs it upstream, and returns its exit status.
func (c *command) exec(ctx context.Context, text string) int {
	cmd, err := parse(text)
	if err != nil {
		c.refuse(vocabulary.Reason{Code: CodeNotGit, Message: err.Error(), Remedy: "use git clone, fetch and push"}, text)
		return failed
	}
	cmd.User, cmd.Host, cmd.Port = c.user, c.dst.Host, c.dst.Port
	ctx, untrack := c.server.track(ctx)
	defer untrack()
	d, ok := c.decide(ctx, cmd, "")
	if !ok {
		return failed
	}
	up, err := c.connect(ctx, d)
	if err != nil {
		c.broken(ctx, d, err)
		return failed
	}
	defer up.Close()
	return c.relay(ctx, up, cmd, d)
}

// decide asks, and records an allowed act before it happens.
func (c *command) decide(ctx context.Context, cmd capability.SSHCommand, refs string) (capability.SSHDecision, bool) {
	d := c.server.Decider.DecideSSH(cmd)
	attrs := map[string]string{"transport": "ssh", "command": cmd.Program, "user": printable(clip(cmd.User)), "host": c.dst.String()}
	if refs != "" {
		attrs["refs"] = refs
	}
	if d.Verdict == vocabulary.Allow && (d.Permit == nil || d.Swap == nil) {
		d.Verdict, d.Reason = vocabulary.Deny, vocabulary.Reason{Code: CodeNoKey, Message: "the grant has no SSH key", Rule: d.Reason.Rule}
	}
	if d.Verdict == vocabulary.Allow && ctx.Err() != nil {
		d.Verdict = vocabulary.Deny
		d.Reason = vocabulary.Reason{Code: CodeRevoked, Message: "the command was broken off", Rule: d.Reason.Rule}
		if errors.Is(context.Cause(ctx), errRevoked) {
			d.Reason.Message = errRevoked.Error()
		}
	}
	if d.Verdict != vocabulary.Allow {
		c.deny(d.Action, d.Resource, d.Reason, attrs)
		say(c.channel.Stderr(), d.Reason)
		return d, false
	}
	attrs["credential"] = d.Swap.Credential
	err := c.server.Controller.Record(v1.Event{Actor: "sandbox", Action: d.Action, Resource: d.Resource, Verdict: vocabulary.Allow, Reason: d.Reason, Attrs: attrs})
	if err != nil {
		say(c.channel.Stderr(), vocabulary.Reason{Code: CodeNoRecord, Message: "the command could not be recorded, so it was not run"})
		return d, false
	}
	return d, true
}

// failure is why a granted command did not come about.
type failure struct {
	code, remedy string
	err          error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// broken records and says why a granted command did not come about or did not
// end; ctx says whether that was our doing.
func (c *command) broken(ctx context.Context, d capability.SSHDecision, err error) {
	reason := vocabulary.Reason{Code: CodeUpstream, Message: printable(clip(err.Error())), Rule: d.Reason.Rule}
	f := (*failure)(nil)
	switch {
	case errors.Is(context.Cause(ctx), errRevoked):
		reason.Code, reason.Message = CodeRevoked, errRevoked.Error()
	case ctx.Err() != nil:
		return // who asked has gone
	case errors.As(err, &f):
		reason.Code, reason.Remedy = f.code, f.remedy
	}
	c.deny(d.Action, d.Resource, reason, map[string]string{"transport": "ssh"})
	reason.Rule = vocabulary.Position{} // the rule has granted it
	say(c.channel.Stderr(), reason)
}

// relay runs the command upstream and copies until it ends.
func (c *command) relay(ctx context.Context, up *upstream, cmd capability.SSHCommand, d capability.SSHDecision) int {
	idle := newIdle(func() { up.Close(); c.channel.Close() })
	defer idle.stop()
	end := context.AfterFunc(ctx, func() { up.Close() })
	defer end()
	run, err := up.start(line(cmd.Program, d.Path), c.protocol)
	if err != nil {
		c.broken(ctx, d, &failure{CodeUpstream, "", fmt.Errorf("%s does not run %s: %w", c.dst.Host, cmd.Program, err)})
		return failed
	}
	var refused atomic.Bool
	var out sync.WaitGroup
	out.Go(func() { io.Copy(c.channel, idle.reader(run.stdout)) })
	out.Go(func() { io.Copy(c.channel.Stderr(), idle.reader(run.stderr)) })
	go func() {
		defer run.stdin.Close()
		from := idle.reader(c.channel)
		if cmd.Program == "git-receive-pack" && !c.push(ctx, from, run.stdin, cmd, d.Swap.Credential) {
			refused.Store(true)
			up.Close()
			return
		}
		io.Copy(run.stdin, from)
	}()
	status, err := run.wait()
	out.Wait()
	switch {
	case refused.Load():
		return failed
	case err == nil:
		return status
	}
	c.broken(ctx, d, &failure{CodeUpstream, "", fmt.Errorf("%s ended the connection", c.dst.Host)})
	return failed
}

// push holds the refs of a push back until they are judged. It reports whether
// the rest may follow.
func (c *command) push(ctx context.Context, from io.Reader, to io.Writer, cmd capability.SSHCommand, credential string) bool {
	push, head, err := readHead(from)
	if err == io.EOF {
		return true
	}
	if err != nil {
		d := c.server.Decider.DecideSSH(cmd) // for its names only
		reason := vocabulary.Reason{Code: capability.CodeBadRequest, Message: "the push was refused: " + printable(clip(err.Error())), Rule: d.Reason.Rule}
		c.deny(d.Action, d.Resource, reason, map[string]string{"transport": "ssh", "command": cmd.Program})
		say(c.channel.Stderr(), reason)
		return false
	}
	if len(push.Updates) > 0 || len(push.Options) > 0 {
		names := make([]string, 0, len(push.Updates))
		for i, u := range push.Updates {
			if i == 8 {
				names = append(names, "… "+strconv.Itoa(len(push.Updates)-i)+" more")
				break
			}
			names = append(names, printable(clip(u.Ref)))
		}
		cmd.Head, cmd.Credential = head, credential
		if _, ok := c.decide(ctx, cmd, strings.Join(names, " ")); !ok {
			return false
		}
	}
	_, err = to.Write(head)
	return err == nil
}

// idle closes what stands still for too long.
type idle struct{ timer *time.Timer }

func newIdle(end func()) *idle { return &idle{time.AfterFunc(idleTimeout, end)} }

func (i *idle) stop() { i.timer.Stop() }

func (i *idle) reader(r io.Reader) io.Reader { return idleReader{r, i.timer} }

type idleReader struct {
	io.Reader
	timer *time.Timer
}

func (r idleReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if n > 0 {
		r.timer.Reset(idleTimeout)
	}
	return n, err
}
