// Package vocabulary holds the words that every room of Bulkhead shares: who
// (SessionID), how isolated (Profile, Isolation, MountMode), what (Action,
// Resource), the answer (Verdict) and why (Reason, always with a Position).
//
// It imports the standard library only, does no input or output, and any
// package in any process may use it. The zero value of every word is the safe
// one: a zero Verdict denies.
package vocabulary

import (
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"strings"
)

// SessionID names one session on one host. It is "s-" and 16 characters of
// lower-case base32 (80 random bits), so it can be used in file names, cgroup
// names and socket names as it is.
type SessionID string

// NewSessionID returns a fresh random id.
func NewSessionID() SessionID {
	var b [10]byte
	rand.Read(b[:]) // crypto/rand.Read never returns an error since Go 1.24
	return SessionID("s-" + strings.ToLower(base32.StdEncoding.EncodeToString(b[:])))
}

// ParseSessionID accepts exactly what NewSessionID makes.
func ParseSessionID(s string) (SessionID, error) {
	rest, ok := strings.CutPrefix(s, "s-")
	if !ok || len(rest) != 16 || strings.Trim(rest, "abcdefghijklmnopqrstuvwxyz234567") != "" {
		return "", fmt.Errorf("%q is not a session id (s- and 16 letters or digits, see: bulkhead session list)", s)
	}
	return SessionID(s), nil
}

// Profile names for whom a session runs; it chooses the defaults.
type Profile string

// The profiles of the contract.
const (
	Developer       Profile = "developer"
	KnowledgeWorker Profile = "knowledge-worker"
	Server          Profile = "server"
)

// ParseProfile accepts the three profile names.
func ParseProfile(s string) (Profile, error) {
	return oneOf("profile", s, Developer, KnowledgeWorker, Server)
}

// Isolation names the kind of boundary around the agent's processes.
type Isolation string

// The isolations of the contract. Auto is only valid in a policy: a session
// always has one of the other three.
const (
	Process   Isolation = "process"
	Container Isolation = "container"
	VM        Isolation = "vm"
	Auto      Isolation = "auto"
)

// ParseIsolation accepts the four isolation names.
func ParseIsolation(s string) (Isolation, error) {
	return oneOf("isolation", s, Process, Container, VM, Auto)
}

// MountMode says what the sandbox may do below a mounted path.
type MountMode string

// The mount modes of the contract. Staged is only valid for a workspace.
const (
	ReadOnly     MountMode = "ro"
	ReadWrite    MountMode = "rw"
	RWNoDelete   MountMode = "rw-no-delete"
	StagedWrites MountMode = "staged"
)

// ParseMountMode accepts the four mode names.
func ParseMountMode(s string) (MountMode, error) {
	return oneOf("mount mode", s, ReadOnly, ReadWrite, RWNoDelete, StagedWrites)
}

func oneOf[T ~string](what, s string, all ...T) (T, error) {
	names := make([]string, len(all))
	for i, v := range all {
		if string(v) == s {
			return v, nil
		}
		names[i] = string(v)
	}
	var zero T
	return zero, fmt.Errorf("unknown %s %q (one of: %s)", what, s, strings.Join(names, ", "))
}

// Action is what someone wants to do, as "room.verb" in lower case:
// "dns.resolve", "tcp.connect", "http.request", "anthropic.messages",
// "credential.use", "session.start".
type Action string

// Resource is what it is done to: a host:port, a URL without its query, a
// path, a session id. Never a secret, never a raw header.
type Resource string

// Verdict is the answer of a decider. Its zero value denies.
type Verdict uint8

// The verdicts.
const (
	Deny Verdict = iota
	Ask
	Allow
)

// String returns the word of the contract.
func (v Verdict) String() string {
	switch v {
	case Allow:
		return "allow"
	case Ask:
		return "ask"
	}
	return "deny"
}

// MarshalText encodes the word.
func (v Verdict) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText accepts the three words and nothing else.
func (v *Verdict) UnmarshalText(b []byte) error {
	switch string(b) {
	case "deny":
		*v = Deny
	case "ask":
		*v = Ask
	case "allow":
		*v = Allow
	default:
		return errors.New("verdict is none of deny, ask, allow")
	}
	return nil
}

// Position is a place in a file that a person can open. Line and Column start
// at 1; 0 means unknown. File is as the user named it, or "preset:NAME",
// "default:PROFILE" or "built-in" for rules that no file of the user's holds.
type Position struct {
	File   string `json:"file,omitempty"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
}

// String renders file:line:column, leaving out what is unknown.
func (p Position) String() string {
	switch {
	case p.File == "":
		return "-"
	case p.Line == 0:
		return p.File
	case p.Column == 0:
		return fmt.Sprintf("%s:%d", p.File, p.Line)
	}
	return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column)
}

// Reason says why a verdict was given, so that a person or an agent can act.
type Reason struct {
	// Code is stable and machine-readable, in kebab case: "no-grant",
	// "foreign-credential", "ip-literal", "name-mismatch", "revoked".
	Code string `json:"code"`
	// Message is one sentence: what was refused or allowed.
	Message string `json:"message"`
	// Rule is the rule that decided; for "no rule matched" it is the policy
	// as a whole.
	Rule Position `json:"rule"`
	// Remedy is what a human could do; empty for an allow.
	Remedy string `json:"remedy,omitempty"`
}

// Exit codes of the command line (DESIGN section 4). A contained command's own
// code passes through; 128+n is a command ended by signal n.
const (
	ExitPolicyInvalid  = 10
	ExitRefused        = 11
	ExitNoIsolation    = 12
	ExitBulkheadFailed = 125
	ExitCannotExecute  = 126
	ExitNotFound       = 127
)

// ExitError carries an exit code with the message for the terminal. Message
// has at most three lines: what was refused, by which rule, what to do.
type ExitError struct {
	Code int
	Err  error
}

func (e *ExitError) Error() string { return e.Err.Error() }
func (e *ExitError) Unwrap() error { return e.Err }

// Exitf makes an ExitError.
func Exitf(code int, format string, args ...any) *ExitError {
	return &ExitError{Code: code, Err: fmt.Errorf(format, args...)}
}
