package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// The services that a policy can name are those of the catalogue and the
// user's own, ~/.config/bulkhead/services/NAME.yaml. A project's folder is never
// looked at.

// serviceDir is where the user's own services are.
func serviceDir() (string, error) {
	own, err := userPolicy()
	if err != nil {
		return "", err
	}
	return filepath.Join(filepath.Dir(own), "services"), nil
}

// configDir is where the user's policy and services are; "" without a home.
func configDir() string {
	own, err := userPolicy()
	if err != nil {
		return ""
	}
	return filepath.Dir(own)
}

// extraServices reads the user's own service files.
func extraServices() ([]catalog.Extra, error) {
	dir, err := serviceDir()
	if err != nil {
		return nil, nil // no home: nothing of the user's own
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var extra []catalog.Extra
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".yaml")
		if !ok || strings.HasPrefix(name, ".") {
			continue
		}
		file := filepath.Join(dir, e.Name())
		data, err := readBounded(file)
		if err != nil {
			return nil, err
		}
		extra = append(extra, catalog.Extra{Name: name, File: file, Data: data})
	}
	return extra, nil
}

type serviceSet struct {
	cat   *catalog.Catalog
	extra []catalog.Extra
	err   error
}

var loadServices = sync.OnceValue(func() (s serviceSet) {
	s.cat = catalog.Default()
	if s.extra, s.err = extraServices(); s.err != nil {
		return s
	}
	cat, err := s.cat.With(s.extra)
	if err != nil {
		s.err = err
		return s
	}
	s.cat = cat
	return s
})

// services is the catalogue with the user's own services.
func services() (*catalog.Catalog, error) {
	s := loadServices()
	if s.err != nil {
		return nil, vocabulary.Exitf(vocabulary.ExitPolicyInvalid, "your own services: %v\nnothing was started; mend the file, or move it out of the folder (bulkhead service check FILE)", s.err)
	}
	return s.cat, nil
}

// own reports where a service of the user's own was read from.
func (s serviceSet) own(name string) (file string, ok bool) {
	i := slices.IndexFunc(s.extra, func(x catalog.Extra) bool { return x.Name == name })
	if i < 0 {
		return "", false
	}
	return s.extra[i].File, true
}

// describe is a service for a person who decides.
func describe(b *strings.Builder, s *catalog.Service, only string) error {
	op, known := s.Operation(only)
	if only != "" && !known {
		var names []string
		for _, op := range s.Operations {
			names = append(names, op.Name)
		}
		return fmt.Errorf("%s has no operation %q (%s)", s.Name, only, policy.Suggest(only, names))
	}
	if only == "" {
		fmt.Fprintf(b, "%s: %s\n", s.Name, s.Description)
		var hosts []string
		for _, e := range s.Endpoints {
			hosts = append(hosts, endpointText(e))
		}
		fmt.Fprintf(b, "  at %s\n", strings.Join(hosts, ", "))
		if c := s.Credential; c != nil {
			var slots []string
			for _, slot := range c.Slots {
				slots = append(slots, slot.String())
			}
			fmt.Fprintf(b, "  credential: inside, a placeholder in %s; replaced in %s and nowhere else\n", strings.Join(c.Env, " or "), strings.Join(slots, " or "))
		}
	}
	for _, o := range s.Operations {
		if only == "" || o.Name == op.Name {
			describeOperation(b, s, o, only != "")
		}
	}
	return nil
}

func endpointText(e catalog.Endpoint) string {
	text := e.Host.String()
	switch {
	case e.Scheme == "https" && e.Port == 443, e.Scheme == "http" && e.Port == 80, e.Scheme == "ssh" && e.Port == 22:
	default:
		text += fmt.Sprintf(":%d", e.Port)
	}
	if e.Scheme != "https" {
		text = e.Scheme + "://" + text
	}
	return text
}

func describeOperation(b *strings.Builder, s *catalog.Service, o catalog.Operation, alone bool) {
	name := s.Name + "." + o.Name
	if len(o.Aliases) > 0 {
		name += " (also " + strings.Join(o.Aliases, ", ") + ")"
	}
	fmt.Fprintf(b, "\n%s\n  lets code: %s\n  does not: %s\n", name, lower(o.Allows), lower(o.DoesNot))
	if o.ResourceTemplate != "" {
		must := "may be limited to"
		if o.NeedsResources {
			must = "has to be granted for named"
		}
		what := o.ResourceTemplate
		if o.Refs {
			what += ", or " + o.ResourceTemplate + "@BRANCH"
		}
		fmt.Fprintf(b, "  %s resources: %s\n", must, what)
	}
	if len(o.FeatureOf) > 0 && len(o.Via) == 0 {
		fmt.Fprintf(b, "  a feature of requests to: %s (granted beside one of them)\n", strings.Join(o.FeatureOf, ", "))
	}
	if o.WebSocket {
		fmt.Fprintf(b, "  opens a WebSocket\n")
	}
	if !alone {
		return
	}
	switch kind := s.BodyKind(o); kind {
	case "":
	case "none":
		fmt.Fprintf(b, "  a body is refused\n")
	case "any":
		fmt.Fprintf(b, "  the body is let through unread\n")
	default:
		fmt.Fprintf(b, "  the body is read (%s), and what is not listed in it is refused or a feature of its own\n", kind)
	}
	for _, line := range o.Requests() {
		fmt.Fprintf(b, "  request: %s\n", line)
	}
}

// lower makes a sentence go on after a colon.
func lower(s string) string {
	if len(s) > 1 && s[0] >= 'A' && s[0] <= 'Z' && (s[1] < 'A' || s[1] > 'Z') {
		return strings.ToLower(s[:1]) + s[1:]
	}
	return s
}
