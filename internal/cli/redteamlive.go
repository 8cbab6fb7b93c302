package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/redteam/live"
	"github.com/bulkhead-dev/bulkhead/internal/redteam/stage"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// live finds the model that a person names, and asks it once, before anything is
// attacked. Without an endpoint the model is the scripted one.
func (o *redteamOptions) live(ctx context.Context, agent stage.Agent) (stage.Agent, *stage.Live, error) {
	refuse := func(err error) (stage.Agent, *stage.Live, error) {
		return agent, nil, vocabulary.Exitf(vocabulary.ExitRefused, "%s; nothing was run", err)
	}
	if o.endpoint == "" {
		if o.model != "" || o.keyEnv != "" {
			return refuse(errors.New("--model and --model-key-env are about a live model: say where it is with --model-endpoint"))
		}
		return agent, nil, nil
	}
	endpoint, err := live.Parse(o.endpoint, agent.API())
	if err != nil {
		return refuse(err)
	}
	if strings.ContainsAny(o.model, " \t\n") {
		return refuse(fmt.Errorf("no model is called %q", o.model))
	}
	if o.model != "" {
		agent = agent.WithModel(o.model)
	}
	variable := o.keyEnv
	if variable == "" {
		variable = agent.API().Variable()
	}
	key := strings.TrimSpace(os.Getenv(variable))
	switch {
	case key == "" && os.Getenv("SUDO_USER") != "":
		return refuse(fmt.Errorf("there is no key in the variable %s; sudo takes variables away: sudo --preserve-env=%s bulkhead …", variable, variable))
	case key == "":
		return refuse(fmt.Errorf("there is no key in the variable %s; put it there, or name another one with --model-key-env", variable))
	case len(key) < 8:
		// A shorter one could not be told from other text in what is kept.
		return refuse(fmt.Errorf("what is in the variable %s is too short for a key", variable))
	}
	if err := endpoint.Check(ctx, key, variable, agent.Model()); err != nil {
		return refuse(err)
	}
	return agent, &stage.Live{Endpoint: endpoint, Key: key}, nil
}
