package policy

import (
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// TrustClass says what project configuration can do.
type TrustClass string

// The classes. What runs or widens is hidden until it is trusted.
const (
	TrustRuns      TrustClass = "runs"
	TrustWidens    TrustClass = "widens"
	TrustInstructs TrustClass = "instructs"
)

// TrustPath is a place where a project can bring configuration along. Elements
// are those of its path, each perhaps a pattern of path.Match, in lower case;
// names are compared without case. Anywhere says that it counts at any depth.
type TrustPath struct {
	Elements []string
	Anywhere bool
	Class    TrustClass
	Owner    string
	Can      string
	Pos      vocabulary.Position
}

// ParseTrust reads catalog/trust.yaml. The error is an ErrorList.
func ParseTrust(data []byte) ([]TrustPath, error) {
	var out []TrustPath
	d := document{file: "trust.yaml"}
	root := d.root(data)
	if root == nil {
		return nil, d.errs.Err()
	}
	classes := []TrustClass{TrustRuns, TrustWidens, TrustInstructs}
	t, ok := d.table(root, "the file", string(TrustRuns), string(TrustWidens), string(TrustInstructs))
	if !ok {
		return nil, d.errs.Err()
	}
	for _, class := range classes {
		n := t.get(string(class))
		if n == nil {
			if t.missing(string(class)) {
				d.errorf(root, "", "%s is missing", class)
			}
			continue
		}
		for _, owner := range d.entries(n, string(class)) {
			for _, e := range d.entries(owner.value, quoted(owner.key)) {
				can, ok := d.str(e.value, "what it can do")
				rest, anywhere := strings.CutPrefix(e.key, "**/")
				if ok && d.pattern(e.node, rest) {
					out = append(out, TrustPath{strings.Split(strings.ToLower(rest), "/"), anywhere, class, owner.key, can.Value, d.pos(e.node)})
				}
			}
		}
	}
	return out, d.errs.Err()
}
