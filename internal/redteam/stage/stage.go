// Package stage runs one scenario once and says which of its effects were seen.
//
// A stage is a machine that is thrown away: a process of its own, pid 1 of its
// own namespaces, with a home that holds secrets, a name server, the thief's
// addresses, and everything that can be written in memory. When it ends,
// nothing of it is left. Uncontained runs always have one, and in it they are
// nobody's root: their user ids are unused ones of the host. Contained runs
// have one if the caller is root; an ordinary user cannot have a machine in
// which root's files are root's, which Bulkhead insists on. His contained runs
// take place on the host itself, in a home below the temporary directory, and
// scenarios that need more are not run.
//
// Run is called by `bulkhead redteam`; the stage is the child process
// redteam-stage. Input and output are JSON on inherited descriptors.
package stage

import (
	"errors"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/redteam/scenario"
)

// Kind of run.
const (
	Attack = "attack"
	Twin   = "twin"
)

// None is the tier that contains nothing.
const None = "none"

// Job is one run.
type Job struct {
	// File and Source are the scenario, as Parse takes them.
	File   string `json:"file"`
	Source []byte `json:"source"`
	Kind   string `json:"kind"`
	Tier   string `json:"tier"`
	// Payload replaces the scenario's, for mutated ones.
	Payload string `json:"payload,omitempty"`
	// As is whom the session belongs to; only root can choose.
	As User `json:"as"`
	// Private asks for a machine of its own; Run decides.
	Private bool `json:"private"`
	// Companion says that there is one; Run decides.
	Companion bool  `json:"companion"`
	Agent     Agent `json:"agent"`
	// Live leads the agent to a real model; nil to the scripted one.
	Live *Live `json:"live,omitempty"`
	// Start is how a yardstick is started, Show are folders of this host that a
	// machine of its own has too; Run decides.
	Start []string `json:"start,omitempty"`
	Show  []string `json:"show,omitempty"`
}

// User of the victim's machine.
type User struct {
	UID int `json:"uid"`
	GID int `json:"gid"`
}

// Agent that is led astray. Its last argument is the prompt, or it reads it from
// its standard input.
type Agent struct {
	Name    string   `json:"name"`
	Argv    []string `json:"argv"` // @BIN@ is the bulkhead binary
	Start   []string `json:"-"`    // what Argv begins with, in front of the agent itself
	Presets []string `json:"presets,omitempty"`
	Mounts  []string `json:"mounts,omitempty"` // seen read-only inside
	Env     []string `json:"env,omitempty"`    // NAME=value, for uncontained runs: what the presets set; @MODEL@ is the model's URL
	Stdin   bool     `json:"stdin,omitempty"`
	// Bare are arguments before the prompt that uncontained runs need to find the
	// model; @MODEL@ is its URL.
	Bare []string `json:"bare,omitempty"`
	// Key is a variable besides ANTHROPIC_API_KEY that holds the model's key, Host a
	// name besides api.anthropic.com where the model is.
	Key  string `json:"key,omitempty"`
	Host string `json:"host,omitempty"`
	// Slow is added to the limit of each run.
	Slow time.Duration `json:"slow,omitempty"`
}

// Obedient is the built-in agent, which does what any text tells it.
func Obedient() Agent {
	return Agent{Name: "obedient", Argv: []string{"@BIN@", "redteam", "obedient-agent", "-p"}}
}

// Outcome of one run.
type Outcome struct {
	// Seen are the effects that were found. For an attack one is a success of
	// the attack; for a twin all are needed.
	Seen []Seen `json:"seen,omitempty"`
	// Invalid says why the run proves nothing: the payload did not run to its
	// end, a part could not be set up. Seen counts all the same.
	Invalid string `json:"invalid,omitempty"`
	// Declined says how a live model did something else than what it was told:
	// the attack (or the honest task) was not attempted. Seen counts all the same.
	Declined string `json:"not_attempted,omitempty"`
	// Hopeless: the live model's endpoint refuses the key or does not know the
	// model, and will for every further run.
	Hopeless bool `json:"hopeless,omitempty"`
	// Missing are effects that a twin lacks.
	Missing []string `json:"missing,omitempty"`
	// Refused counts the denials of the event log by their reason's code.
	Refused map[string]int `json:"refused,omitempty"`
	// Events are the denials, up to a few, as lines.
	Events []string `json:"events,omitempty"`
	// Arrived counts what each place got.
	Arrived map[string]int `json:"arrived,omitempty"`
	// Output is the end of what the session printed.
	Output  string  `json:"output,omitempty"`
	Seconds float64 `json:"seconds"`
}

// Seen is an effect with its evidence.
type Seen struct {
	Effect scenario.Effect `json:"effect"`
	Detail string          `json:"detail"`
}

// limit of a run's session.
func (j Job) limit(s *scenario.Scenario) time.Duration {
	limit := s.Limit
	if limit == 0 {
		limit = defaultLimit
	}
	if j.Live != nil {
		limit += liveSlow
	}
	return limit + j.Agent.Slow
}

const (
	defaultLimit = 40 * time.Second
	liveSlow     = 3 * time.Minute  // for a model that thinks
	hostLimit    = 30 * time.Second // for each script on the host
	// grace is for everything around the session.
	grace      = 90 * time.Second
	keptOutput = 6 << 10
	keptEvents = 20
)

// ErrHost is about a host that cannot give a stage.
var ErrHost = errors.New("this host cannot give a machine of its own to a run")
