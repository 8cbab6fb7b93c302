package stage

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/redteam/canary"
	"github.com/bulkhead-dev/bulkhead/internal/redteam/live"
	"github.com/bulkhead-dev/bulkhead/internal/redteam/modelstub"
)

// Live leads the agent to a real model.
type Live struct {
	Endpoint *live.Endpoint `json:"-"`
	// Key is what the victim's variable holds: Bulkhead reads it from there, an
	// uncontained agent too.
	Key string `json:"key"`
}

func (j Job) key() string {
	if j.Live != nil {
		return j.Live.Key
	}
	return canary.ModelKey()
}

// API is the protocol that an agent speaks.
func (a Agent) API() live.API {
	switch a.Host {
	case "api.openai.com":
		return live.OpenAI
	case "generativelanguage.googleapis.com":
		return live.Gemini
	}
	return live.Anthropic
}

const modelFlag = "--model"

// Model that the agent asks for; "" is its own choice.
func (a Agent) Model() string {
	if i := slices.Index(a.Argv, modelFlag); i >= 0 {
		_, name, ok := strings.Cut(a.Argv[i+1], "/")
		if !ok {
			return a.Argv[i+1]
		}
		return name
	}
	return ""
}

// WithModel lets it ask for another one.
func (a Agent) WithModel(name string) Agent {
	a.Argv = slices.Clone(a.Argv)
	i := slices.Index(a.Argv, modelFlag)
	if i < 0 {
		i = slices.Index(a.Argv, "-p") // the prompt follows in some
		a.Argv = slices.Insert(a.Argv, i, modelFlag, name)
		return a
	}
	if provider, _, ok := strings.Cut(a.Argv[i+1], "/"); ok {
		name = provider + "/" + name
	}
	a.Argv[i+1] = name
	return a
}

// relay opens the way to the endpoint; the file is the stage's end.
func (l *Live) relay() (*os.File, func(), error) {
	ours, theirs, err := pair()
	if err != nil {
		return nil, nil, err
	}
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	done := make(chan struct{})
	go func() { defer close(done); l.Endpoint.Relay(conn) }()
	return theirs, func() { conn.Close(); <-done }, nil
}

func relayed(f *os.File) (http.RoundTripper, error) {
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("the relay to the model: %w", err)
	}
	return live.RoundTripper(conn), nil
}

// declined says that a live model did not run the script, or "" if something
// kept it from being asked: then the run proves nothing.
func (r *run) declined() string {
	if r.job.Live == nil {
		return ""
	}
	var calls []string
	said, asked := "", 0
	for _, rec := range r.model.Records() {
		if len(rec.Tools) == 0 || rec.Failure != "" || rec.Status != http.StatusOK {
			continue // beside the conversation
		}
		asked++
		calls = append(calls, rec.Answered...)
		if rec.Said != "" {
			said = rec.Said
		}
	}
	if asked == 0 {
		return ""
	}
	what := "it called no tool"
	if len(calls) > 0 {
		what = "it called " + strings.Join(calls[:min(len(calls), 12)], ", ")
	}
	return fmt.Sprintf("the model did not run the script: %d answers, %s; its last words: %s", asked, what, live.Excerpt([]byte(r.conceal(said))))
}

// failure is the last one of the live model's endpoint.
func (r *run) failure() (text string, hopeless bool) {
	for _, rec := range r.model.Records() {
		if rec.Failure == "" {
			continue
		}
		text = "the model's endpoint: " + rec.Failure
		hopeless = rec.Status == http.StatusUnauthorized || rec.Status == http.StatusForbidden || rec.Status == http.StatusNotFound
	}
	return r.conceal(text), hopeless
}

// conceal takes the model's key out of what is kept.
func (r *run) conceal(s string) string {
	s = strings.ReplaceAll(s, r.v.key, "(key)")
	if r.job.Live != nil && len(canary.Find([]byte(s), r.secrets("key"))) > 0 {
		return "(withheld: the model's key is in it, encoded)"
	}
	return s
}

// scripted or live, as the job says.
func (r *run) startModel(listen string) (*modelstub.Server, error) {
	return modelstub.Start(modelstub.Config{Key: r.v.key, Script: modelstub.Obedient, Live: r.live, KeepRaw: true, Listen: listen})
}
