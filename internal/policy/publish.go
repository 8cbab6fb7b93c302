package policy

import (
	"fmt"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// ParsePublished reads "3000" or "8080:3000", a port of the host and the port
// inside that it leads to.
func ParsePublished(s string) (Published, error) {
	host, inside, two := strings.Cut(s, ":")
	if !two {
		inside = host
	}
	var p Published
	for _, part := range []struct {
		text string
		to   *int
	}{{host, &p.Host}, {inside, &p.Inside}} {
		n, err := strconv.Atoi(part.text)
		if err != nil || n < 1 || n > 65535 || strconv.Itoa(n) != part.text {
			return Published{}, fmt.Errorf("%s is not a port", quoted(s))
		}
		*part.to = n
	}
	return p, nil
}

// publish reads a list of ports. A bare 8080:3000 would be a number to the base
// of sixty in older YAML, so that form has to be quoted.
func (r *reader) publish(n *yaml.Node) []Published {
	const hint = `3000, or "8080:3000" for port 8080 of this host and port 3000 inside`
	if n == nil || !r.kind(n, yaml.SequenceNode, "publish") {
		return nil
	}
	var out []Published
	for _, c := range n.Content {
		if !r.kind(c, yaml.ScalarNode, "publish") {
			continue
		}
		p, err := ParsePublished(c.Value)
		if err != nil || c.Tag != "!!int" && c.Tag != "!!str" {
			r.errorf(c, hint, "%s is not a port", quoted(c.Value))
			continue
		}
		p.Pos = r.pos(c)
		for _, have := range out {
			if have.Host == p.Host {
				r.errorf(c, "remove one of them", "port %d of this host is published twice, first at %s", p.Host, have.Pos)
			}
		}
		out = append(out, p)
	}
	return out
}
