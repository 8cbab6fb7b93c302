package stage

import (
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/bulkhead-dev/bulkhead/internal/redteam/scenario"
)

// policyText is the scenario's policy with what an agent needs to live: its
// binary, its model, and where the names of the stage live. Where a name lives
// is no permission. staged tells that the tier made the workspace a staged one.
func policyText(s *scenario.Scenario, v values, a Agent, tier, model, modelCA, project string, names []string) (text []byte, staged bool, err error) {
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(v.fill(s.Policy)), &doc); err != nil {
		return nil, false, fmt.Errorf("policy.yaml: %w", err)
	}
	root := doc.Content[0]
	set(root, "isolation", scalar(tier))
	ws := lookup(root, "workspace")
	if ws == nil {
		set(root, "workspace", mapping("path", project, "mode", "rw"))
	} else if lookup(ws, "path") == nil {
		set(ws, "path", scalar(project))
	} else if project != v.project { // the second session has a workspace of its own
		lookup(ws, "path").Value = project
	}
	if ws = lookup(root, "workspace"); tier == "vm" {
		// This tier lets nothing write to a folder of the host: what is
		// written is staged.
		if mode := lookup(ws, "mode"); mode == nil || mode.Value == "rw" {
			set(ws, "mode", scalar("staged"))
			staged = true
		}
	}
	for _, m := range append([]string{v.bin}, a.Mounts...) {
		push(root, "mounts", mapping("path", m, "mode", "ro"))
	}
	if len(a.Presets) == 0 {
		ops := &yaml.Node{Kind: yaml.SequenceNode, Content: []*yaml.Node{scalar("messages"), scalar("models"), scalar("count_tokens")}}
		g := mapping("service", "anthropic", "credential", "stage-model")
		set(g, "operations", ops)
		push(root, "grants", g)
		c := &yaml.Node{Kind: yaml.MappingNode}
		set(c, "from", mapping("env", "ANTHROPIC_API_KEY"))
		under(root, "credentials", "stage-model", c)
		for _, kv := range a.Env {
			k, val, _ := strings.Cut(kv, "=")
			under2(root, "env", "set", k, scalar(val))
		}
	}
	under(root, "upstreams", "api.anthropic.com", mapping("connect", model, "ca", modelCA))
	if a.Host != "" {
		under(root, "upstreams", a.Host, mapping("connect", model, "ca", modelCA))
	}
	for _, n := range names {
		if ups := lookup(root, "upstreams"); lookup(ups, n) == nil {
			under(root, "upstreams", n, mapping("connect", v.thief+":80"))
		}
	}
	text, err = yaml.Marshal(&doc)
	return text, staged, err
}

func scalar(s string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Value: s, Style: yaml.DoubleQuotedStyle}
}

func mapping(kv ...string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode}
	for i := 0; i < len(kv); i += 2 {
		set(n, kv[i], scalar(kv[i+1]))
	}
	return n
}

func lookup(n *yaml.Node, key string) *yaml.Node {
	if n == nil {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// set adds a key, or replaces what it has.
func set(n *yaml.Node, key string, v *yaml.Node) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			n.Content[i+1] = v
			return
		}
	}
	n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: key, Style: yaml.DoubleQuotedStyle}, v)
}

func push(n *yaml.Node, key string, v *yaml.Node) {
	list := lookup(n, key)
	if list == nil {
		list = &yaml.Node{Kind: yaml.SequenceNode}
		set(n, key, list)
	}
	list.Content = append(list.Content, v)
}

func under(n *yaml.Node, key, sub string, v *yaml.Node) {
	m := lookup(n, key)
	if m == nil {
		m = &yaml.Node{Kind: yaml.MappingNode}
		set(n, key, m)
	}
	set(m, sub, v)
}

func under2(n *yaml.Node, key, sub, name string, v *yaml.Node) {
	m := lookup(n, key)
	if m == nil {
		m = &yaml.Node{Kind: yaml.MappingNode}
		set(n, key, m)
	}
	under(m, sub, name, v)
}
