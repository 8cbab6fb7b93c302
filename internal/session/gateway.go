package session

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"syscall"

	v1 "github.com/bulkhead-dev/bulkhead/api/v1"
	"github.com/bulkhead-dev/bulkhead/internal/broker"
	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/egress"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/secret"
	"github.com/bulkhead-dev/bulkhead/internal/truststore"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// gatewayController is what the gateway may ask of the controller: to record,
// and for a credential at the moment of its use.
type gatewayController session

func (g *gatewayController) Record(e v1.Event) error { return g.log.Record(e) }

func (g *gatewayController) Credential(name string, action vocabulary.Action, resource vocabulary.Resource) (secret.Value, error) {
	return g.creds.Credential(name, action, resource)
}

// credentialUse says which credentials of the policy some grant uses, and
// through which service (empty for a raw grant).
func credentialUse(p *policy.Policy) map[string][]string {
	uses := map[string][]string{}
	for _, g := range p.Grants {
		if g.Credential != "" {
			uses[g.Credential] = append(uses[g.Credential], g.Service)
		}
	}
	return uses
}

// openBroker reads the credentials that some grant uses; the others are not
// touched.
func (s *session) openBroker(ctx context.Context) (*broker.Broker, error) {
	uses := credentialUse(s.opts.Policy)
	var sources []broker.Source
	for _, c := range s.opts.Policy.Credentials {
		services, used := uses[c.Name]
		if !used {
			continue
		}
		var spec *catalog.CredentialSpec // nil: a raw grant, of any shape
		for _, name := range services {
			if svc, ok := s.opts.Catalog.Service(name); ok && svc.Credential != nil {
				spec = svc.Credential
			}
		}
		inside := spec.EnvFor(c.Env)
		if len(inside) == 0 && c.Env != "" {
			inside = []string{c.Env}
		}
		placeholder := catalog.Placeholder(spec, rand.Reader)
		if spec != nil && len(inside) > 0 {
			placeholder = spec.ShapeFor(inside[0]).New(rand.Reader)
		}
		sources = append(sources, broker.Source{
			Name: c.Name, Env: c.Env, File: s.view.resolve(c.File), Command: c.Command, Keyring: c.Keyring,
			Optional: c.Optional, Pos: c.Pos, Placeholder: placeholder,
		})
		s.view.credEnv[c.Name] = inside
	}
	b, missing, err := broker.Open(ctx, sources, os.LookupEnv)
	if err != nil {
		return nil, asExit(vocabulary.ExitRefused, err)
	}
	for _, m := range missing {
		s.view.notices = append(s.view.notices, m.String()+"\nwithout it the service will refuse; set it, or name a file, command or keyring entry under credentials:")
	}
	return b, nil
}

// placeholders maps each credential that exists to what the sandbox sees.
func (s *session) placeholders() map[string]string {
	all := map[string]string{}
	for _, name := range s.creds.Names() {
		all[name] = s.creds.Placeholder(name)
	}
	return all
}

// hostResolvers reads what the gateway cannot: the host's name servers and
// hosts file (resolv.conf(5), hosts(5)).
func hostResolvers() (nameservers []string, hosts map[string][]string) {
	eachLine("/etc/resolv.conf", func(f []string) {
		if len(f) > 1 && f[0] == "nameserver" {
			if a, err := netip.ParseAddr(f[1]); err == nil {
				nameservers = append(nameservers, a.String())
			}
		}
	})
	hosts = map[string][]string{}
	eachLine("/etc/hosts", func(f []string) {
		a, err := netip.ParseAddr(f[0])
		if err != nil {
			return
		}
		for _, name := range f[1:] {
			name = strings.ToLower(strings.TrimSuffix(name, "."))
			hosts[name] = append(hosts[name], a.String())
		}
	})
	return nameservers, hosts
}

func eachLine(path string, do func(fields []string)) {
	f, err := os.Open(path)
	if err != nil {
		return
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		line, _, _ := strings.Cut(sc.Text(), "#")
		if fields := strings.Fields(line); len(fields) > 0 {
			do(fields)
		}
	}
}

// maxCertificates bounds an upstream's ca: what reaches the gateway in one message.
const maxCertificates = 256 << 10

// readCertificates reads a regular file; a pipe or device in its place must
// neither hang the start nor fill the memory.
func readCertificates(name string) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	pem, err := io.ReadAll(io.LimitReader(f, maxCertificates+1))
	if err == nil && len(pem) > maxCertificates {
		err = fmt.Errorf("%s is larger than %d KiB", name, maxCertificates>>10)
	}
	return pem, err
}

// gatewayConfig is all that the gateway will ever know.
func (s *session) gatewayConfig(ca truststore.CA, roots []byte) (egress.Config, error) {
	c := egress.Config{
		Session: s.id, Spec: s.view.spec, CACert: ca.CertDER, CAKey: ca.KeyDER, RootsPEM: roots,
		Network: s.view.network, Placeholders: s.placeholders(),
	}
	c.Nameservers, c.Hosts = hostResolvers()
	for _, u := range s.opts.Policy.Upstreams {
		up := egress.Upstream{Host: u.Host, Connect: u.Connect}
		if u.CA != "" {
			pem, err := readCertificates(policy.ResolvePath(u.CA, s.view.who.home, s.view.cwd))
			if err != nil {
				return c, vocabulary.Exitf(vocabulary.ExitRefused, "%s: the upstream's ca cannot be read: %v\nnothing was started", u.Pos, err)
			}
			up.CAPEM = pem
		}
		c.Upstreams = append(c.Upstreams, up)
	}
	if len(roots) == 0 && len(s.opts.Policy.Grants) > 0 {
		return c, vocabulary.Exitf(vocabulary.ExitRefused, "this host has no certificate store, so upstreams could not be verified\nnothing was started\ninstall one: apt-get install ca-certificates")
	}
	return c, nil
}
