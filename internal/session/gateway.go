package session

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
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

// credentialUse says which credentials of the policy some grant or proxy uses,
// and through which service (empty for a raw grant; none for a proxy).
func credentialUse(p *policy.Policy) map[string][]string {
	uses := map[string][]string{}
	for _, g := range p.Grants {
		if g.Credential != "" {
			uses[g.Credential] = append(uses[g.Credential], g.Service)
		}
	}
	for _, u := range p.Upstreams {
		if u.Credential != "" && uses[u.Credential] == nil {
			uses[u.Credential] = []string{} // a proxy's login: nothing of it is inside
		}
	}
	return uses
}

// openBroker reads the credentials that some grant uses; the others are not
// touched.
func (s *session) openBroker(ctx context.Context) (*broker.Broker, error) {
	uses := credentialUse(s.opts.Policy)
	var sources []broker.Source
	variables := map[string][][]string{} // of each credential, by source
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
		source, inside, err := s.source(c, c, spec)
		if err != nil {
			return nil, err
		}
		choices := [][]string{inside}
		for _, o := range c.Or {
			alternative, inside, err := s.source(c, o, spec)
			if err != nil {
				return nil, err
			}
			source.Or = append(source.Or, alternative)
			choices = append(choices, inside)
		}
		sources = append(sources, source)
		if len(services) > 0 {
			variables[c.Name] = choices
		}
	}
	b, missing, err := broker.Open(ctx, sources, os.LookupEnv)
	if err != nil {
		return nil, asExit(vocabulary.ExitRefused, err)
	}
	for name, choices := range variables {
		s.view.credEnv[name] = choices[b.Chosen(name)]
	}
	for _, m := range missing {
		s.view.notices = append(s.view.notices, m.String()+"\nwithout it the service will refuse; to have it: "+m.Remedy+"; or: bulkhead credential add "+m.Name)
	}
	return b, nil
}

// source is what the broker reads for a credential c at one of its sources, and
// the variables inside that hold its placeholder.
func (s *session) source(c, at policy.Credential, spec *catalog.CredentialSpec) (src broker.Source, inside []string, err error) {
	from, err := s.loginSource(c, at.Login)
	if err != nil {
		return src, nil, err
	}
	if at.Login == "" {
		inside = spec.EnvFor(at.Env)
		if len(inside) == 0 && at.Env != "" {
			inside = []string{at.Env}
		}
	}
	placeholder := catalog.Placeholder(spec, rand.Reader)
	if spec != nil && len(inside) > 0 {
		placeholder = spec.ShapeFor(inside[0]).New(rand.Reader)
	}
	src = broker.Source{
		Name: c.Name, Env: at.Env, File: s.view.resolve(at.File), Command: at.Command, Keyring: at.Keyring, Login: from,
		Optional: c.Optional, Pos: c.Pos, Placeholder: placeholder,
	}
	if at.SSH != "" {
		src.SSH, src.Placeholder = s.view.resolveSSH(at.SSH), ""
		return src, nil, nil // nothing of it is inside
	}
	inside, err = s.cloudSource(c, at, &src, inside)
	return src, inside, err
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
	c.SSH = s.ssh.config
	l := s.opts.Policy.Limits
	bound := func(b policy.At[int64]) egress.Bound { return egress.Bound{Bytes: b.Value, Pos: b.Pos} }
	c.Limits.Quota = egress.Quota{Upload: bound(l.Upload), Download: bound(l.Download), UploadEach: bound(l.UploadEach), DownloadEach: bound(l.DownloadEach)}
	for _, x := range s.opts.Services {
		if slices.ContainsFunc(s.opts.Policy.AllGrants(), func(g policy.Grant) bool { return g.Service == x.Name }) {
			c.Services = append(c.Services, x)
		}
	}
	c.Nameservers, c.Hosts = hostResolvers()
	for _, u := range s.opts.Policy.Upstreams {
		up := egress.Upstream{Host: u.Host, Connect: u.Connect, Proxy: u.Proxy, Credential: u.Credential}
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
