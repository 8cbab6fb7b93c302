package policy

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Describe says in plain words what the bounds narrow, a line for each. Paths and
// names are the file's own: what shows them to a person makes them safe.
func (b *Bounds) Describe() []string {
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if b.Isolation.Value != "" {
		add("isolation: %s at least", b.Isolation.Value)
	}
	if b.Workspace.Value != "" {
		add("workspace: %s at most", b.Workspace.Value)
	}
	if b.Writable.Given() {
		add("%s", "writable: of yours only "+orNone(values(b.Writable.Items)))
	}
	folders := func(what string, list AtMost[FolderBound]) {
		if !list.Given() {
			return
		}
		var all []string
		for _, f := range list.Items {
			mode := string(f.Mode)
			if f.Mode == NoMount {
				mode = "never"
			}
			all = append(all, f.Path+" "+mode)
		}
		add("%s", what+orNone(all))
	}
	folders("workspaces: only in ", b.Workspaces)
	folders("mounts: of yours only ", b.Mounts)
	if b.EnvPass.Given() {
		add("%s", "environment: of yours only "+orNone(values(b.EnvPass.Items)))
	}
	if b.Grants.Given() {
		var all []string
		for _, g := range b.Grants.Items {
			all = append(all, g.String())
		}
		add("%s", "network: of your grants only "+orNone(all))
	}
	if b.Publish.Given() {
		var all []string
		for _, p := range b.Publish.Items {
			all = append(all, fmt.Sprintf("%d:%d", p.Host, p.Inside))
		}
		add("%s", "published ports: of yours only "+orNone(all))
	}
	if b.Upstreams.Given() {
		var all []string
		for _, u := range b.Upstreams.Items {
			all = append(all, u.Host)
		}
		add("%s", "upstreams: of yours only "+orNone(all))
	}
	limit := func(pos vocabulary.Position, name, value string) {
		if pos.File != "" {
			add("%s: %s at most", name, value)
		}
	}
	l := b.Limits
	limit(l.Pos.Memory, "memory", sizeString(l.Memory))
	limit(l.Pos.PIDs, "processes and threads", strconv.Itoa(l.PIDs))
	limit(l.Pos.CPUs, "processors", strconv.FormatFloat(l.CPUs, 'f', -1, 64))
	limit(l.Pos.Wall, "time", wallString(l.Wall))
	for _, x := range l.amounts() {
		limit(x.of.Pos, x.what, x.show(x.of.Value))
	}
	switch b.Trust.Value {
	case TrustNever:
		add("trust: no project's configuration")
	case TrustAsk:
		add("trust: only by a person who is asked")
	}
	if len(out) == 0 {
		add("nothing")
	}
	return out
}

func orNone(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}

// String is the grant on one line.
func (g Grant) String() string {
	var what string
	switch {
	case g.Service != "" && len(g.Operations) == 0:
		return g.Service + " (all operations)"
	case g.Service != "":
		what = g.Service + " " + strings.Join(values(g.Operations), ", ")
	case g.SSH != "":
		what = "git over ssh " + g.SSH + " " + strings.Join(values(g.Operations), ", ")
	case g.HTTP != "":
		return strings.Join(g.Methods, ", ") + " " + g.HTTP
	default:
		return "tcp " + g.TCP
	}
	if len(g.Resources) > 0 {
		what += " on " + strings.Join(values(g.Resources), ", ")
	}
	return what
}
