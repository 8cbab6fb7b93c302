package process

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	v1 "github.com/bulkhead-dev/bulkhead/api/v1"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// patience bounds every wait of a story.
const patience = 15 * time.Second

var commands = map[string]func(*testscript.TestScript, bool, []string){
	"exits":      cmdExits,
	"upstream":   cmdUpstream,
	"subst":      cmdSubst,
	"event":      cmdEvent,
	"eventlog":   cmdEventLog,
	"waitfile":   cmdWaitFile,
	"waitgone":   cmdWaitGone,
	"waithere":   cmdWaitHere,
	"tree":       cmdTree,
	"waitdead":   cmdWaitDead,
	"readenv":    cmdReadEnv,
	"sigkill":    cmdSigkill,
	"jsonfield":  cmdJSONField,
	"binonly":    cmdBinOnly,
	"empty":      cmdEmpty,
	"arrived":    cmdArrived,
	"gitserver":  cmdGitServer,
	"registries": cmdRegistries,
	"hub":        cmdHub,
	"sshserver":  cmdSSHServer,
	"asgit":      cmdAsGit,
	"screen":     cmdScreen,
	"asuser":     cmdAsUser,
}

// exits CODE COMMAND [ARGS]: runs it and compares the exit code; stdout and
// stderr are kept as exec keeps them.
func cmdExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND [ARGS]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// subst IN OUT: copies a file and replaces $NAME and ${NAME}.
func cmdSubst(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: subst IN OUT")
	}
	text := os.Expand(ts.ReadFile(args[0]), ts.Getenv)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(text), 0o644))
}

func decode(ts *testscript.TestScript, file string) []v1.Event {
	var events []v1.Event
	for line := range bytes.Lines([]byte(ts.ReadFile(file))) {
		var e v1.Event
		dec := json.NewDecoder(bytes.NewReader(line))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&e); err != nil {
			ts.Fatalf("%s: %q is no event: %v", file, line, err)
		}
		events = append(events, e)
	}
	return events
}

// event FILE KEY=REGEXP…: some event (with !: no event) has all these. Keys are
// actor, action, resource, verdict, code, message, rule, remedy and attr names.
func cmdEvent(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: event FILE KEY=REGEXP…")
	}
	found := false
	for _, e := range decode(ts, args[0]) {
		all := true
		for _, cond := range args[1:] {
			key, pattern, ok := strings.Cut(cond, "=")
			if !ok {
				ts.Fatalf("%q is not KEY=REGEXP", cond)
			}
			re, err := regexp.Compile("^(?:" + pattern + ")$")
			ts.Check(err)
			all = all && re.MatchString(field(e, key))
		}
		found = found || all
	}
	if found == neg {
		ts.Fatalf("event with %v: found %v\n%s", args[1:], found, ts.ReadFile(args[0]))
	}
}

func field(e v1.Event, key string) string {
	switch key {
	case "actor":
		return e.Actor
	case "action":
		return string(e.Action)
	case "resource":
		return string(e.Resource)
	case "verdict":
		return e.Verdict.String()
	case "code":
		return e.Reason.Code
	case "message":
		return e.Reason.Message
	case "rule":
		return e.Reason.Rule.String()
	case "remedy":
		return e.Reason.Remedy
	}
	return e.Attrs[key]
}

// eventlog FILE: the file keeps the promises of the schema: version, session,
// gapless sequence, time that does not run backwards, a reason, a known actor.
func cmdEventLog(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: eventlog FILE")
	}
	events := decode(ts, args[0])
	if len(events) == 0 {
		ts.Fatalf("%s is empty", args[0])
	}
	var last time.Time
	for i, e := range events {
		_, err := vocabulary.ParseSessionID(string(e.Session))
		switch {
		case err != nil:
			ts.Fatalf("event %d: %v", i+1, err)
		case e.Version != 1 || e.Seq != uint64(i+1) || e.Session != events[0].Session:
			ts.Fatalf("event %d: version %d, seq %d, session %s", i+1, e.Version, e.Seq, e.Session)
		case e.Time.Before(last) || e.Time.Location() != time.UTC:
			ts.Fatalf("event %d: time %v after %v", i+1, e.Time, last)
		case e.Action == "" || e.Resource == "" || e.Reason.Code == "":
			ts.Fatalf("event %d lacks its action, resource or reason: %+v", i+1, e)
		case e.Verdict != vocabulary.Allow && e.Reason.Message == "":
			ts.Fatalf("event %d refuses without a message: %+v", i+1, e)
		case !strings.Contains(" sandbox gateway controller user ", " "+e.Actor+" "):
			ts.Fatalf("event %d: unknown actor %q", i+1, e.Actor)
		}
		last = e.Time
	}
	if st, err := os.Stat(ts.MkAbs(args[0])); err != nil || st.Mode().Perm() != 0o600 {
		ts.Fatalf("%s: mode %v, %v", args[0], st.Mode(), err)
	}
}

func eventually(ts *testscript.TestScript, what string, f func() bool) { within(ts, patience, what, f) }

func within(ts *testscript.TestScript, limit time.Duration, what string, f func() bool) {
	deadline := time.Now().Add(limit)
	for !f() {
		if time.Now().After(deadline) {
			ts.Fatalf("%s: not within %v", what, limit)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// waitfile FILE [REGEXP]: waits until the file is there and matches.
func cmdWaitFile(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: waitfile FILE [REGEXP]")
	}
	re := regexp.MustCompile(`\n`)
	if len(args) == 2 {
		re = regexp.MustCompile("(?m)" + args[1])
	}
	eventually(ts, "waitfile "+strings.Join(args, " "), func() bool {
		data, err := os.ReadFile(ts.MkAbs(args[0]))
		return err == nil && re.Match(data)
	})
}

// waitgone TEXT [TIME]: waits until no process of the host has TEXT in its
// command line. The stories put a marker there. It may take TIME.
func cmdWaitGone(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: waitgone TEXT [TIME]")
	}
	limit := patience
	if len(args) == 2 {
		var err error
		limit, err = time.ParseDuration(args[1])
		ts.Check(err)
	}
	within(ts, limit, "waitgone "+args[0], func() bool { return len(processes(args[0])) == 0 })
}

// waithere TEXT: waits until a process has the command line TEXT, arguments
// separated by spaces, or the last argument TEXT.
func cmdWaitHere(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: waithere TEXT")
	}
	want := strings.ReplaceAll(args[0], " ", "\x00") + "\x00"
	eventually(ts, "waithere "+args[0], func() bool {
		for _, pid := range processes(want) {
			data, err := os.ReadFile("/proc/" + pid + "/cmdline")
			if err == nil && (string(data) == want || bytes.HasSuffix(data, []byte("\x00"+want)) && bytes.Count(data, []byte{0}) == 2) {
				return true
			}
		}
		return false
	})
}

// tree FILE PID: keeps in FILE which processes descend from PID now, itself
// included: pid and start time, which together are never used twice.
func cmdTree(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: tree FILE PID")
	}
	started, children := map[string]string{}, map[string][]string{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range stats {
		pid := strings.Split(f, "/")[2]
		if parent, start, ok := stat(pid); ok {
			started[pid] = start
			children[parent] = append(children[parent], pid)
		}
	}
	var b strings.Builder
	todo := []string{args[1]}
	for len(todo) > 0 {
		pid := todo[0]
		todo = append(todo[1:], children[pid]...)
		fmt.Fprintln(&b, pid, started[pid])
	}
	// Controller, gateway, warden, bwrap, guest and a command, at least.
	if n := strings.Count(b.String(), "\n"); n < 6 {
		ts.Fatalf("only %d processes descend from %s:\n%s", n, args[1], &b)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(b.String()), 0o644))
}

// stat returns parent and start time of a process that is not a zombie.
func stat(pid string) (parent, start string, ok bool) {
	data, err := os.ReadFile("/proc/" + pid + "/stat")
	_, rest, found := strings.Cut(string(data), ") ") // a name may hold one too, but ours do not
	f := strings.Fields(rest)
	if err != nil || !found || len(f) < 20 || f[0] == "Z" || f[0] == "X" {
		return "", "", false
	}
	return f[1], f[19], true
}

// waitdead FILE [TIME]: waits until all that tree has kept are gone.
func cmdWaitDead(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: waitdead FILE [TIME]")
	}
	limit := patience
	if len(args) == 2 {
		var err error
		limit, err = time.ParseDuration(args[1])
		ts.Check(err)
	}
	lines := strings.Split(strings.TrimSpace(ts.ReadFile(args[0])), "\n")
	began := time.Now()
	within(ts, limit, "waitdead "+args[0], func() bool {
		for _, l := range lines {
			pid, start, _ := strings.Cut(l, " ")
			if _, now, ok := stat(pid); ok && now == start {
				return false
			}
		}
		return true
	})
	ts.Logf("%d processes gone after %v", len(lines), time.Since(began).Round(time.Millisecond))
}

// asuser COMMAND [ARGS]: as exec, as the ordinary user of the tests; for root's
// run only.
func cmdAsUser(ts *testscript.TestScript, neg bool, args []string) {
	u, err := findOrdinaryUser()
	ts.Check(err)
	args = append([]string{"--reuid", u.Uid, "--regid", u.Gid, "--clear-groups", "--", "env", "HOME=" + u.HomeDir}, args...)
	if err := ts.Exec("setpriv", args...); (err != nil) != neg {
		ts.Fatalf("asuser: %v", err)
	}
}

func processes(marker string) []string {
	var pids []string
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err == nil && bytes.Contains(data, []byte(marker)) {
			pids = append(pids, strings.Split(f, "/")[2])
		}
	}
	return pids
}

// readenv NAME FILE: waits for a line in FILE and sets NAME to it.
func cmdReadEnv(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: readenv NAME FILE")
	}
	cmdWaitFile(ts, false, args[1:])
	line, _, _ := strings.Cut(ts.ReadFile(args[1]), "\n")
	ts.Setenv(args[0], line)
}

// sigkill PID: kill -9 of one process, which must be a bulkhead.
func cmdSigkill(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: sigkill PID")
	}
	pid, err := strconv.Atoi(args[0])
	ts.Check(err)
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	ts.Check(err)
	if exe != filepath.Join(shared, "bin", "bulkhead") {
		ts.Fatalf("pid %d is %s, not the bulkhead under test", pid, exe)
	}
	ts.Check(syscall.Kill(pid, syscall.SIGKILL))
}

// jsonfield NAME FIELD: sets NAME to the field of the last stdout, a JSON object.
func cmdJSONField(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: jsonfield NAME FIELD")
	}
	var m map[string]any
	dec := json.NewDecoder(strings.NewReader(ts.ReadFile("stdout")))
	dec.UseNumber()
	ts.Check(dec.Decode(&m))
	v, ok := m[args[1]]
	if !ok {
		ts.Fatalf("no field %q", args[1])
	}
	ts.Setenv(args[0], fmt.Sprint(v))
}

// binonly DIR NAME…: makes DIR hold links to these programs and nothing else,
// for a PATH on which something is missing.
func cmdBinOnly(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: binonly DIR NAME…")
	}
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o755))
	for _, name := range args[1:] {
		path := filepath.Join(shared, "bin", name)
		if _, err := os.Stat(path); err != nil {
			path, err = exec.LookPath(name)
			ts.Check(err)
		}
		ts.Check(os.Symlink(path, filepath.Join(dir, name)))
	}
}

// empty FILE: the file is there and has nothing in it.
func cmdEmpty(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: empty FILE")
	}
	if text := ts.ReadFile(args[0]); (text == "") == neg {
		ts.Fatalf("%s holds %q", args[0], text)
	}
}
