package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/pflag"

	catalogdata "github.com/bulkhead-dev/bulkhead/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/broker/login"
	"github.com/bulkhead-dev/bulkhead/internal/capability"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/session"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// policySource is where a policy comes from: a file or the profile's defaults,
// then the flags. Every command that needs a policy has the same flags.
type policySource struct {
	file, profile, isolation, workspace, image string
	presets, publish                           []string
	allowLogin                                 []string
	given                                      *pflag.FlagSet
}

func (s *policySource) flags(f *pflag.FlagSet) {
	s.given = f
	f.StringVar(&s.file, "policy", "", "policy `FILE` (default: your own, if there is one)")
	f.StringSliceVar(&s.presets, "preset", nil, "add presets by `NAME,…` (see: bulkhead preset list)")
	f.StringVar(&s.profile, "profile", "", "`PROFILE`: developer, knowledge-worker or server")
	f.StringVar(&s.isolation, "isolation", "", "`ISOLATION`: process, container, vm or auto")
	f.StringVar(&s.image, "image", "", "a container's root: `IMAGE` is [HOST/]NAME[:TAG], oci:DIR, docker-archive:FILE or rootfs:DIR")
	f.StringSliceVar(&s.publish, "publish", nil, "make port `[HOST:]PORT` inside reachable on this host's loopback")
	f.StringSliceVar(&s.allowLogin, "allow-login", nil, "let a login begun inside complete for `CREDENTIAL,…`, of the account that is known")
	f.StringVar(&s.workspace, "workspace", "", "workspace `DIR[:MODE]`, mode ro, rw, rw-no-delete or staged")
}

// maxPolicy bounds what is read before the parser sees it.
const maxPolicy = 1 << 20

// userPolicy is the path of the user's own policy, by the XDG base directory
// specification.
func userPolicy() (string, error) {
	dir := os.Getenv("XDG_CONFIG_HOME")
	if dir == "" || !filepath.IsAbs(dir) {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(home, ".config")
	}
	return filepath.Join(dir, "bulkhead", "policy.yaml"), nil
}

func readBounded(path string) ([]byte, error) {
	// Non-blocking: a pipe in the policy's place would hold the open for ever.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxPolicy+1))
	if err == nil && len(b) > maxPolicy {
		err = fmt.Errorf("%s is larger than 1 MiB", path)
	}
	return b, err
}

// parse returns the policy as written, before flags and presets.
func (s *policySource) parse() (*policy.Policy, error) {
	path := s.file
	if path == "" {
		own, err := userPolicy()
		if err != nil {
			return nil, vocabulary.Exitf(vocabulary.ExitRefused, "finding your policy: %v\nset HOME to your home folder, or name the policy with --policy", err)
		}
		if _, err := os.Lstat(own); errors.Is(err, fs.ErrNotExist) {
			return policy.Default(vocabulary.Developer), nil
		}
		path = own
	}
	data, err := readBounded(path)
	if err != nil {
		return nil, vocabulary.Exitf(vocabulary.ExitPolicyInvalid, "cannot read the policy: %v\nname another file", err)
	}
	return policy.Parse(path, data)
}

// load returns the effective policy: parsed, flags applied, presets expanded,
// names of services and operations checked.
func (s *policySource) load() (*policy.Policy, error) {
	// An empty value is a script's unset variable. The default would be wider
	// than what was meant.
	for name, value := range map[string]string{"policy": s.file, "profile": s.profile, "isolation": s.isolation, "workspace": s.workspace, "image": s.image} {
		if s.given != nil && s.given.Changed(name) && value == "" {
			return nil, vocabulary.Exitf(vocabulary.ExitRefused, "--%s is empty; nothing was started\nname one, or leave the flag out", name)
		}
	}
	p, err := s.parse()
	if err != nil {
		return nil, err
	}
	if err := s.apply(p); err != nil {
		return nil, err
	}
	p, err = policy.Expand(p, lookupPreset)
	if err != nil {
		return nil, err
	}
	for _, name := range s.allowLogin {
		if err := p.SetAllowLogin(name); err != nil {
			return nil, vocabulary.Exitf(vocabulary.ExitPolicyInvalid, "--allow-login: %v", err)
		}
	}
	return p, nil
}

// effective is load within the policies of the administrator and of a trusted
// project, as a session in this folder would have it.
func (s *policySource) effective() (*policy.Policy, error) {
	p, err := s.load()
	if err != nil {
		return nil, err
	}
	cat, err := services()
	if err != nil {
		return nil, err
	}
	return session.Narrow(p, cat)
}

func (s *policySource) apply(p *policy.Policy) error {
	if s.profile != "" {
		profile, err := vocabulary.ParseProfile(s.profile)
		if err != nil {
			return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "--profile: %v", err)
		}
		p.SetProfile(profile)
	}
	if s.isolation != "" {
		isolation, err := vocabulary.ParseIsolation(s.isolation)
		if err != nil {
			return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "--isolation: %v", err)
		}
		p.Isolation = isolation
	}
	if s.image != "" {
		image, err := policy.ParseImage(s.image)
		if err != nil {
			return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "--image: %v", err)
		}
		image.Pos = vocabulary.Position{File: "--image"}
		p.Image = image
	}
	if s.workspace != "" {
		dir, mode := s.workspace, vocabulary.ReadWrite
		if i := strings.LastIndexByte(dir, ':'); i >= 0 {
			m, err := vocabulary.ParseMountMode(dir[i+1:])
			if err != nil {
				return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "--workspace: %v\nfor a folder with a colon in its name, add the mode: --workspace %s:rw", err, dir)
			}
			dir, mode = dir[:i], m
		}
		p.Workspace = policy.Workspace{Path: dir, Mode: mode, Writable: p.Workspace.Writable, Pos: vocabulary.Position{File: "--workspace"}}
	}
	for _, text := range s.publish {
		port, err := policy.ParsePublished(text)
		if err != nil {
			return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "--publish: %v\nwrite PORT, or HOST:PORT for another port of this host", err)
		}
		port.Pos = vocabulary.Position{File: "--publish"}
		p.Publish = append(p.Publish, port)
	}
	for _, name := range s.presets {
		p.Presets = append(p.Presets, policy.At[string]{Value: strings.TrimSpace(name), Pos: vocabulary.Position{File: "--preset"}})
	}
	return nil
}

func lookupPreset(name string) (*policy.Preset, error) {
	data, err := catalogdata.Presets.ReadFile("presets/" + name + ".yaml")
	if err != nil || strings.ContainsAny(name, "/\\.") {
		return nil, fmt.Errorf("unknown preset %q (%s)", name, policy.Suggest(name, presetNames()))
	}
	return policy.ParsePreset(name, data)
}

func presetNames() (names []string) {
	files, _ := fs.Glob(catalogdata.Presets, "presets/*.yaml")
	for _, f := range files {
		names = append(names, strings.TrimSuffix(filepath.Base(f), ".yaml"))
	}
	return names
}

// compile checks every grant against the catalogue.
func compile(p *policy.Policy) (*capability.Set, error) {
	cat, err := services()
	if err != nil {
		return nil, err
	}
	return capability.Compile(capability.FromPolicy(p), cat)
}

// compileWithLogins is compile with what a session adds for its logins: the
// token endpoints of each login that a grant could use are answered on the host.
func compileWithLogins(p *policy.Policy) (*capability.Set, error) {
	cat, err := services()
	if err != nil {
		return nil, err
	}
	spec := capability.FromPolicy(p)
	for _, c := range p.Credentials {
		used := slices.ContainsFunc(p.Grants, func(g policy.Grant) bool { return g.Credential == c.Name })
		for _, at := range append([]policy.Credential{c}, c.Or...) {
			if !used || at.Login == "" {
				continue
			}
			l, err := login.Load(catalogdata.Logins, at.Login)
			if err != nil {
				return nil, vocabulary.Exitf(vocabulary.ExitPolicyInvalid, "%s: %v", c.Pos, err)
			}
			for _, endpoint := range l.Endpoints() {
				spec.Rules = append(spec.Rules, capability.Rule{Pos: c.Pos, Exchange: endpoint, Credential: c.Name})
			}
		}
	}
	return capability.Compile(spec, cat)
}
