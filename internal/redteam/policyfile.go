package redteam

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
)

// policyFile renders the policy of a contained run in the public format.
// ground is where things are on the host.
func policyFile(v Variant, a Agent, g ground) []byte {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("version: 1")
	line("profile: developer")
	line("isolation: %s", v.Tier)
	line("workspace: {path: %s, mode: rw}", quote(g.workspace))
	var mounts []string
	mounts = append(mounts, a.Mounts...)
	if v.mountFile {
		mounts = append(mounts, g.credentials)
	}
	if len(mounts) > 0 {
		line("mounts:")
		for _, m := range mounts {
			line("  - {path: %s, mode: ro}", quote(m))
		}
	}
	own := len(a.Presets) == 0
	if own && len(a.Env) > 0 {
		line("env:")
		line("  set:")
		for _, kv := range a.Env {
			k, v, _ := strings.Cut(kv, "=")
			line("    %s: %s", k, quote(v))
		}
	}
	if own || v.grantCollector {
		line("grants:")
	}
	if own {
		line("  - service: anthropic")
		line("    operations: [messages]")
		line("    credential: model")
	}
	if v.grantCollector {
		line("  - http: %s", quote(fmt.Sprintf("http://%s:%d/**", collector, g.thief.Port())))
		line("    methods: [GET, POST]")
	}
	if own {
		line("credentials:")
		line("  model: {from: {env: ANTHROPIC_API_KEY}}")
	}
	line("upstreams:")
	line("  api.anthropic.com: {connect: %s, ca: %s}", quote(g.model), quote(g.ca))
	if v.grantCollector {
		line("  %s: {connect: %s}", collector, quote(g.thief.String()))
	}
	return []byte(b.String())
}

// ground is where the parts of one run are on the host.
type ground struct {
	home, workspace string
	credentials     string // the canary file
	ca              string // PEM file of the model stand-in's authority
	model           string // ip:port of the model stand-in
	thief           netip.AddrPort
	policy, events  string
}

// quote renders a YAML double-quoted string; JSON's is one.
func quote(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // strings always marshal
	}
	return string(b)
}
