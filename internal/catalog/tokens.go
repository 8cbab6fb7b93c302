package catalog

import (
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// tokenPlace is where a service hands out tokens for its own hosts, in the
// manner of OCI registries: GET https://host/path answers with a JSON object
// whose token goes into Authorization: Bearer of the requests that follow. A * in
// the path stands for letters of one segment.
type tokenPlace struct {
	host HostPattern
	path string
}

// readTokenPlace reads "host/path".
func (s *Service) readTokenPlace(d *reader, n *yaml.Node) {
	var text string
	d.str(&text)(n)
	name, at, _ := strings.Cut(text, "/")
	host, err := parseHost(name, s.sets)
	switch {
	case err != nil:
		d.fail(n, "%v", err)
	case CheckPath("/"+at) != nil || strings.ContainsAny(at, "{}?[\\"):
		d.fail(n, "a place of tokens is written host/path, with * for a segment")
	case !slices.ContainsFunc(s.Endpoints, func(e Endpoint) bool { return e.Scheme == "https" && e.Host.text == host.text }):
		d.fail(n, "%s is not among the hosts", name)
	default:
		s.tokens = append(s.tokens, tokenPlace{host, "/" + at})
	}
}

// IssuesTokens reports whether the answer to r, a request that Match knows, is a
// token for the service's own hosts. The sandbox gets a stand-in for it.
func (s *Service) IssuesTokens(r *Request) bool {
	return r.Scheme == "https" && r.Method == "GET" &&
		slices.ContainsFunc(s.tokens, func(t tokenPlace) bool {
			ok, _ := path.Match(t.path, r.Path)
			return ok && t.host.Match(r.Host)
		})
}

// TakesTokens reports whether slot is where such a token stands.
func (s *Service) TakesTokens(slot Slot) bool {
	return len(s.tokens) > 0 && slot == Slot{Header: "Authorization", Scheme: "Bearer"}
}
