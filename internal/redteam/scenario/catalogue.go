package scenario

import (
	_ "embed"
	"fmt"
	"slices"

	"go.yaml.in/yaml/v3"
)

//go:embed catalogue.yaml
var catalogueText []byte

// Entry is one line of the catalogue of ways in which sandboxes were broken.
// Exactly one of Scenarios, Test and Open says what became of it.
type Entry struct {
	ID    string `json:"id" yaml:"-"`
	Title string `json:"title" yaml:"title"`
	// Scenarios that cover it.
	Scenarios []string `json:"scenarios,omitempty" yaml:"-"`
	// Test elsewhere that covers it: what can't be seen from inside a session.
	Test string `json:"test,omitempty" yaml:"test"`
	// Open says why nothing covers it. It counts as open, never as passed.
	Open string `json:"open,omitempty" yaml:"open"`
}

// Coverage joins the catalogue with the scenarios.
func Coverage(all []*Scenario) ([]Entry, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(catalogueText, &doc); err != nil {
		return nil, fmt.Errorf("catalogue.yaml: %w", err)
	}
	by := map[string][]string{}
	for _, s := range all {
		for _, id := range s.Covers {
			by[id] = append(by[id], s.Name)
		}
	}
	var out []Entry
	top := doc.Content[0]
	for i := 0; i+1 < len(top.Content); i += 2 {
		e := Entry{ID: top.Content[i].Value}
		if err := top.Content[i+1].Decode(&e); err != nil {
			return nil, fmt.Errorf("catalogue.yaml:%d: %w", top.Content[i].Line, err)
		}
		e.Scenarios = by[e.ID]
		slices.Sort(e.Scenarios)
		delete(by, e.ID)
		out = append(out, e)
	}
	for id, names := range by {
		return nil, fmt.Errorf("%s covers %s, which the catalogue does not have", names[0], id)
	}
	return out, nil
}
