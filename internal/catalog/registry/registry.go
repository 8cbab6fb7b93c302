// Package registry makes a service file for a registry of images of one's own
// (Harbor, GitLab, Artifactory, distribution, …): the operations of the
// catalogue's own registries, at another host.
//
// It is pure, and runs in the controller. What it makes is a file for the user
// to review, not a grant.
package registry

import (
	"fmt"
	"strings"

	catalogdata "github.com/bulkhead-dev/bulkhead/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
)

// Options say where the registry is.
type Options struct {
	// Name of the service.
	Name string
	// Host of the registry: its name, with :port if it is not 443.
	Host string
	// Realm and Service are those of its challenge (WWW-Authenticate: Bearer
	// realm="https://…",service="…"); both are empty for a registry that takes
	// the password itself.
	Realm, Service string
}

// Make returns the service file.
func Make(o Options) ([]byte, error) {
	host, err := endpoint(o.Host)
	if err != nil {
		return nil, err
	}
	if o.Name == "" || strings.Trim(o.Name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return nil, fmt.Errorf("the name of a service has lower-case letters, digits and -, not %q", o.Name)
	}
	if (o.Realm == "") != (o.Service == "") {
		return nil, fmt.Errorf("the realm and the service of a challenge belong together: the registry says both in WWW-Authenticate")
	}
	name, _, _ := strings.Cut(host, ":")
	hosts, token := host, ""
	if o.Realm != "" {
		rest, ok := strings.CutPrefix(o.Realm, "https://")
		at, path, slash := strings.Cut(rest, "/")
		realm, err := endpoint(at)
		if !ok || !slash || err != nil || catalog.CheckPath("/"+path) != nil || strings.ContainsAny(path, "?*{}, \"") {
			return nil, fmt.Errorf("the realm of a registry is https://HOST/PATH, not %q", o.Realm)
		}
		if strings.Trim(o.Service, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:") != "" {
			return nil, fmt.Errorf("the service %q of a challenge has letters, digits and -_.: only", o.Service)
		}
		if realm != host {
			hosts += ", " + realm
		}
		realmName, _, _ := strings.Cut(realm, ":")
		token = realmName + "/" + path
	}
	var out strings.Builder
	for line := range strings.Lines(string(catalogdata.Registry)) {
		if token == "" && strings.Contains(line, "TOKEN") {
			continue
		}
		out.WriteString(strings.NewReplacer("NAME", o.Name, "HOSTS", hosts, "HOST", name, "TOKEN", token, "SERVICE", o.Service,
			"VARIABLE", strings.ToUpper(strings.ReplaceAll(o.Name, "-", "_"))+"_TOKEN").Replace(line))
	}
	if _, err := catalog.Parse(o.Name+".yaml", []byte(out.String())); err != nil {
		return nil, err
	}
	return []byte(out.String()), nil
}

// endpoint accepts a name with a port or without.
func endpoint(s string) (string, error) {
	name, port, hasPort := strings.Cut(s, ":")
	h, err := hostport.ParseHost(name)
	if err != nil {
		return "", err
	}
	if !hasPort {
		return h.String(), nil
	}
	p, err := hostport.ParsePort(port)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s:%d", h, p), nil
}
