// Package scenario holds what the red-team harness runs: small files that say
// how a victim's machine looks, what its user asks for, what the attacker's
// text makes the agent do, and by which effects one sees that it worked.
//
// Pure: bytes in, values out. It runs in the process of `bulkhead redteam`.
// docs/redteam.md is the reference of the format.
package scenario

import (
	"embed"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"
)

// Scenario is one attack with the honest task that must go on working.
type Scenario struct {
	// Name is the file's, without .txtar.
	Name string `json:"name"`
	// File is where it came from, for messages.
	File     string `json:"file"`
	Title    string `json:"title"`
	Category string `json:"category"`
	// Outcome is a class of DESIGN section 3.
	Outcome string `json:"outcome"`
	// Tiers that it applies to.
	Tiers []string `json:"tiers"`
	// Needs lists programs (by name or absolute path) and host features (Features).
	Needs []string `json:"needs,omitempty"`
	// Attacker says what the attacker must have before it begins.
	Attacker string `json:"attacker"`
	// Covers lists the entries of the catalogue that it generalises.
	Covers []string `json:"covers"`
	// Reference is the published incident or advisory, if there is one.
	Reference string `json:"reference,omitempty"`
	// Env is added to the environment that the session is started from.
	Env map[string]string `json:"env,omitempty"`
	// Listen are services of the host and of the network besides the thief.
	Listen []Listener `json:"listen,omitempty"`
	// Effects: the attack has succeeded if any of them is seen.
	Effects []Effect `json:"effects"`
	// Twin: the honest task has succeeded if all of them are seen.
	Twin []Effect `json:"twin"`
	// MayDie: the payload may be ended by what it does (a memory bomb); that it
	// began is then proof enough that it ran.
	MayDie bool `json:"may_die,omitempty"`
	// ByItself: an agent may do it of its own accord, before it runs anything. What
	// is seen then counts, whether or not the payload ran.
	ByItself bool `json:"by_itself,omitempty"`
	// Unproven says why the attack may fail on some hosts even with nothing in its way.
	Unproven string `json:"unproven,omitempty"`
	// Known says why this attack succeeds against the present version: a defect
	// with a name, which still fails the gate.
	Known string `json:"known,omitempty"`
	// Alone: its effect is measured on the whole machine, so nothing else runs meanwhile.
	Alone bool `json:"alone,omitempty"`
	// Limit for each run; 0 is the default.
	Limit time.Duration `json:"limit,omitempty"`
	// Mutators that may be applied to the payload.
	Mutators []string `json:"mutators,omitempty"`

	Policy  string            `json:"-"`
	Task    string            `json:"-"` // what the user asks for, in front of the payload
	Payload string            `json:"-"` // shell, run by the agent
	Honest  string            `json:"-"` // shell of the twin, run by the agent
	Setup   string            `json:"-"` // shell, on the host, before
	During  string            `json:"-"` // shell, on the host, meanwhile
	Later   string            `json:"-"` // shell, on the host, afterwards
	Second  string            `json:"-"` // shell, in a second session beside the first
	Home    map[string]string `json:"-"` // files of the victim's home
	Project map[string]string `json:"-"` // files of the workspace
}

// Listener is a service that records what it gets and answers.
type Listener struct {
	Name    string `json:"name"`
	Network string `json:"network"` // tcp, udp, unix
	Address string `json:"address"`
}

// Effect is one thing to look at. Exactly one of Has and Is is set.
type Effect struct {
	// At is thief, model, provider, second, marker, host, listener:NAME, or a path: absolute, ~/… of
	// the victim's home, ./… of the workspace.
	At string `json:"at"`
	// Has: secret, key or beacon, in any encoding that package canary undoes.
	Has string `json:"has,omitempty"`
	// Is: created, changed, removed. At host only changed.
	Is string `json:"is,omitempty"`
}

func (e Effect) String() string {
	if e.Has != "" {
		return e.At + " has " + e.Has
	}
	return e.At + " is " + e.Is
}

// Path reports whether the effect is about a file.
func (e Effect) Path() bool {
	return strings.HasPrefix(e.At, "/") || strings.HasPrefix(e.At, "@STAGE@/") || e.At == "@BIN@" || e.InHome() || e.InProject()
}

// InHome and InProject tell what a path is relative to.
func (e Effect) InHome() bool { return strings.HasPrefix(e.At, "~/") }

// InProject: see InHome.
func (e Effect) InProject() bool { return strings.HasPrefix(e.At, "./") }

// The words of the header.
var (
	Outcomes = []string{"escape", "host leak", "exfiltration", "lateral movement", "denial of service"}
	Tiers    = []string{"process", "container", "vm"}
	// Features of a host: private is a machine of its own to stage on, which for
	// contained runs only root can have; root and ordinary say whose session it must be.
	Features = []string{"private", "root", "ordinary"}
	// Categories are those of the catalogue, and incident.
	Categories = []string{
		"FS", "DX", "SL", "PR", "IPC", "TTY", "KRN", "RES", "DNS", "NET", "PXY", "EXF", "CRD", "APR", "TRU", "MCP",
		"MEM", "MAG", "AUD", "CTL", "VMM", "incident",
	}
	Mutators = []string{"encodings", "channels", "timing", "destinations", "order"}
)

var categoryTitles = map[string]string{
	"FS": "paths and files", "DX": "files that the host runs later", "SL": "links and races", "PR": "processes and /proc", "IPC": "sockets of the host",
	"TTY": "the terminal", "KRN": "the kernel's surface", "RES": "exhaustion", "DNS": "names as a channel", "NET": "addresses and ports",
	"PXY": "disagreements of parsers", "EXF": "through what is allowed", "CRD": "credentials", "APR": "approval and command lines",
	"TRU": "configuration before trust", "MCP": "tools and their servers", "MEM": "memory and instructions", "MAG": "agents among each other",
	"AUD": "evidence", "CTL": "the control plane", "VMM": "runtime and tenants", "incident": "published incidents",
}

// CategoryTitle is what a category is about.
func CategoryTitle(name string) string { return categoryTitles[name] }

//go:embed data/*.txtar
var embedded embed.FS

// Builtin returns the scenarios of this version, by name.
func Builtin() ([]*Scenario, error) {
	names, err := fs.Glob(embedded, "data/*.txtar")
	if err != nil {
		return nil, err
	}
	var out []*Scenario
	for _, n := range names {
		data, err := embedded.ReadFile(n)
		if err != nil {
			return nil, err
		}
		s, err := Parse(path.Base(n), data)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// Source returns the text of a built-in scenario.
func Source(name string) ([]byte, error) { return embedded.ReadFile("data/" + name + ".txtar") }

// WithPayload is the text of a scenario with another payload.
func WithPayload(source []byte, payload string) []byte {
	const begin = "-- payload.sh --\n"
	head, rest, ok := strings.Cut(string(source), begin)
	if !ok {
		return source
	}
	for line := range strings.SplitAfterSeq(rest, "\n") {
		if markerRE.MatchString(strings.TrimSuffix(line, "\n")) {
			break
		}
		rest = rest[len(line):]
	}
	return []byte(head + begin + payload + rest)
}

// Select returns those of all whose name matches one of the patterns (path.Match);
// every pattern must match something.
func Select(all []*Scenario, patterns []string) ([]*Scenario, error) {
	if len(patterns) == 0 {
		return all, nil
	}
	chosen := map[*Scenario]bool{}
	for _, p := range patterns {
		n := 0
		for _, s := range all {
			ok, err := path.Match(p, s.Name)
			if err != nil {
				return nil, fmt.Errorf("%q is no pattern: %w", p, err)
			}
			if ok || s.Category == p || slices.Contains(s.Covers, p) {
				chosen[s], n = true, n+1
			}
		}
		if n == 0 {
			return nil, fmt.Errorf("no scenario is named %q or covers it; see: bulkhead redteam list", p)
		}
	}
	return slices.DeleteFunc(slices.Clone(all), func(s *Scenario) bool { return !chosen[s] }), nil
}
