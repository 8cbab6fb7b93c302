package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/bulkhead-dev/bulkhead/api/v1"
	"github.com/bulkhead-dev/bulkhead/internal/event"
	"github.com/bulkhead-dev/bulkhead/internal/session"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

func newEvent() *cobra.Command {
	return noun("event", "Follow what sessions do and what was refused", eventTail())
}

func eventTail() *cobra.Command {
	var asJSON, once, denied bool
	c := &cobra.Command{
		Use:   "tail [SESSION | FILE]",
		Short: "Follow a session's events, live and readable (default: the newest session)",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, live, err := eventFile(args)
			if err != nil {
				return err
			}
			f, err := os.Open(path)
			if errors.Is(err, fs.ErrNotExist) {
				return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "no events are at %s\nname the FILE that --events named, or see which there are: ls %s", path, filepath.Dir(path))
			}
			if err != nil {
				return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "no events: %v", err)
			}
			defer f.Close()
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return follow(ctx, f, !once && live, func(e v1.Event, line []byte) error {
				if denied && e.Verdict == vocabulary.Allow {
					return nil
				}
				if asJSON {
					_, err := cmd.OutOrStdout().Write(append(line, '\n'))
					return err
				}
				_, err := fmt.Fprintln(cmd.OutOrStdout(), renderEvent(e, denied))
				return err
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print the JSON lines as they are")
	c.Flags().BoolVar(&once, "no-follow", false, "print what there is and stop")
	c.Flags().BoolVar(&denied, "denied", false, "only what was not allowed, with what a person could do")
	return c
}

// eventFile finds the log: a file's path, a session's id, or the newest log.
// live says whether more can come.
func eventFile(args []string) (path string, live bool, err error) {
	dir, err := session.EventDir()
	if err != nil {
		return "", false, err
	}
	if len(args) == 1 {
		id, err := vocabulary.ParseSessionID(args[0])
		if err != nil {
			return args[0], true, nil
		}
		if r, err := session.Find(id); err == nil {
			if info, err := r.Info(); err == nil {
				return info.Events, true, nil
			}
		}
		return filepath.Join(dir, string(id)+".jsonl"), false, nil
	}
	logs, _ := filepath.Glob(filepath.Join(dir, "s-*.jsonl"))
	if len(logs) == 0 {
		return "", false, errors.New("no session has run yet; events appear with: bulkhead run -- CMD")
	}
	sort.Slice(logs, func(i, j int) bool { return modTime(logs[i]).Before(modTime(logs[j])) })
	newest := logs[len(logs)-1]
	_, err = session.Find(vocabulary.SessionID(strings.TrimSuffix(filepath.Base(newest), ".jsonl")))
	return newest, err == nil, nil
}

func modTime(path string) time.Time {
	st, err := os.Stat(path)
	if err != nil {
		return time.Time{}
	}
	return st.ModTime()
}

// follow delivers every event of r. It ends at the end of the file; with wait
// not before the session's end event.
func follow(ctx context.Context, r io.Reader, wait bool, each func(v1.Event, []byte) error) error {
	var pending []byte
	chunk := make([]byte, 64<<10)
	for {
		n, rerr := r.Read(chunk)
		pending = append(pending, chunk[:n]...)
		for {
			i := bytes.IndexByte(pending, '\n')
			if i < 0 {
				break
			}
			line := pending[:i]
			events, _, err := event.Decode(pending[:i+1])
			if err != nil {
				return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "the log is damaged: %v\nin line: %s", err, clip(printable(string(line)), 120))
			}
			if err := each(events[0], bytes.Clone(line)); err != nil {
				return err
			}
			if events[0].Action == session.ActionEnd {
				wait = false // what a person did afterwards may stand behind it
			}
			pending = pending[i+1:]
		}
		if rerr != nil && rerr != io.EOF {
			return rerr
		}
		if n > 0 {
			continue
		}
		if !wait {
			if len(pending) > 0 {
				return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "the log ends in a torn line of %d bytes (a full disk, or a killed controller)", len(pending))
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// renderEvent makes one line for a person:
// 12:03:04  DENY   http.request  POST https://x/y  no-grant: …  (policy.yaml:14)
// with remedies a second one says what to do.
func renderEvent(e v1.Event, remedies bool) string {
	mark := map[vocabulary.Verdict]string{vocabulary.Allow: "allow", vocabulary.Ask: "ask  ", vocabulary.Deny: "DENY "}[e.Verdict]
	var b strings.Builder
	fmt.Fprintf(&b, "%s  %s  %-10s  %-20s %s", e.Time.Local().Format("15:04:05.000"), mark, e.Actor, printable(string(e.Action)), printable(string(e.Resource)))
	keys := make([]string, 0, len(e.Attrs))
	for k := range e.Attrs {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		fmt.Fprintf(&b, " %s=%s", printable(k), clip(printable(e.Attrs[k]), 80))
	}
	if e.Verdict != vocabulary.Allow && e.Reason.Message != "" {
		fmt.Fprintf(&b, "  — %s", printable(e.Reason.Message))
	}
	if e.Reason.Rule.File != "" {
		fmt.Fprintf(&b, "  (%s)", printable(e.Reason.Rule.String()))
	}
	if remedies && e.Reason.Remedy != "" {
		fmt.Fprintf(&b, "\n%14sdo: %s", "", printable(e.Reason.Remedy))
	}
	if e.Degraded {
		b.WriteString("  [degraded]")
	}
	return b.String()
}

// printable keeps the sandbox's words from driving the reader's terminal.
func printable(s string) string {
	clean := func(r rune) bool { return r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) || isBidiOrInvisible(r) }
	if strings.IndexFunc(s, clean) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if clean(r) {
			q, _ := json.Marshal(string(r))
			if len(q) > 2 && q[1] == '\\' {
				b.Write(q[1 : len(q)-1])
			} else {
				fmt.Fprintf(&b, "\\u%04x", r)
			}
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

// isBidiOrInvisible lists what can reorder or hide text (Unicode's Bidi_Control
// and default-ignorable format characters, and the tag block).
func isBidiOrInvisible(r rune) bool {
	switch {
	case r == 0x061c, r >= 0x200b && r <= 0x200f, r >= 0x202a && r <= 0x202e, r >= 0x2060 && r <= 0x206f, r == 0xfeff, r >= 0xe0000 && r <= 0xe007f:
		return true
	}
	return false
}

func clip(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}
