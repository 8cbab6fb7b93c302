// Package v1 holds the wire types that other programs read: the event schema.
// It is the same for every tier. Fields are only ever added.
package v1

import (
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Event is one line of a session's event log (JSON lines). It is written
// before the act it describes. It never holds a secret or a raw header.
type Event struct {
	// Version of the schema: 1.
	Version int `json:"v"`
	// Time in UTC, set by the recorder.
	Time time.Time `json:"time"`
	// Seq counts from 1 within a session without gaps, set by the recorder.
	Seq uint64 `json:"seq"`
	// Session the event belongs to, set by the recorder.
	Session vocabulary.SessionID `json:"session"`
	// Actor who acts: "sandbox" (the agent's side), "gateway", "controller",
	// "user" (a person through the command line).
	Actor    string              `json:"actor"`
	Action   vocabulary.Action   `json:"action"`
	Resource vocabulary.Resource `json:"resource"`
	Verdict  vocabulary.Verdict  `json:"verdict"`
	Reason   vocabulary.Reason   `json:"reason"`
	// Degraded marks every event of a session that runs with an --unsafe-
	// switch, set by the recorder.
	Degraded bool `json:"degraded,omitempty"`
	// Attrs are further facts, short and without secrets: "method", "status",
	// "bytes_out", "operation", "exit".
	Attrs map[string]string `json:"attrs,omitempty"`
}
