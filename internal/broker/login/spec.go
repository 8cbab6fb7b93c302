package login

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/bulkhead-dev/bulkhead/internal/catalog"
)

// Place is a way into a JSON document, key by key.
type Place []string

// Spec describes one program's login. It is data: catalog/logins/NAME.yaml.
type Spec struct {
	Name        string `yaml:"login"`
	Description string `yaml:"description"`
	// Again says how a person logs in on the host.
	Again string `yaml:"again"`

	// Stores are where the login may lie on the host, tried in this order.
	Stores []Store `yaml:"stores"`
	// Format is "json" or "gh" (GitHub CLI's hosts.yml).
	Format string `yaml:"format"`
	At     struct {
		Access    Place `yaml:"access"`
		Refresh   Place `yaml:"refresh"`
		ID        Place `yaml:"id"`
		ExpiresMS Place `yaml:"expires-ms"` // milliseconds since 1970
		Scope     Place `yaml:"scope"`      // a list, or one text with spaces
		Refreshed Place `yaml:"refreshed"`  // RFC 3339: when it was last refreshed
		Account   Place `yaml:"account"`    // the program's own word for the account
	} `yaml:"at"`

	// Account says what tells one account from another.
	Account AccountSpec `yaml:"account"`

	Endpoint struct {
		URL    string   `yaml:"url"`
		Also   []string `yaml:"also"`   // further names of the same endpoint
		Device string   `yaml:"device"` // where a device code begins
		Client string   `yaml:"client"`
		// Secret is the client's, where the program is given away with one: no
		// secret of anybody's (RFC 8252 section 8.5).
		Secret string `yaml:"secret"`
		Encode string `yaml:"encode"` // "json" or "form", of refresh requests
		// EncodeCode is Encode for authorization codes, if that differs.
		EncodeCode string `yaml:"encode-code"`
		// Scope is what a login begun inside asks for by device code.
		Scope string `yaml:"scope"`
		// Refused are error codes besides invalid_grant by which the endpoint says
		// that a refresh token is of no use any more.
		Refused []string `yaml:"refused"`
	} `yaml:"endpoint"`

	Inside struct {
		// File holds the login inside; "~/" is the home inside.
		File string `yaml:"file"`
		// Keep are places whose values are copied from the host's file.
		Keep []Place `yaml:"keep"`
		// Also are constants at the top of the file.
		Also map[string]any `yaml:"also"`
		// With are further files inside, path to text: settings without which the
		// program would not work here with a login.
		With map[string]string `yaml:"with"`
		// TokenEnv are variables that hold the access placeholder instead.
		TokenEnv []string `yaml:"token-env"`
		// Env are variables with constants that make the program use the login.
		Env map[string]string `yaml:"env"`
		// Shapes of the placeholders; "jwt" is a token that the program decodes.
		Access  string `yaml:"access"`
		Refresh string `yaml:"refresh"`
		// Claims of the host's id token that a "jwt" carries.
		Claims []Place `yaml:"claims"`
		// Answer are places of a token answer that the sandbox gets to see.
		Answer []Place `yaml:"answer"`
	} `yaml:"inside"`
}

// Store is one place on the host. Exactly one of File and Keyring is set.
type Store struct {
	// File begins with "~/". Env, if set on the host, replaces Folder.
	File   string `yaml:"file"`
	Env    string `yaml:"env"`
	Folder string `yaml:"folder"`
	// Locks are folders that the program makes while it refreshes (npm's
	// proper-lockfile), below Folder; "*.lock" is Folder with .lock appended.
	Locks []string `yaml:"locks"`
	// Keyring is the entry's service; User its user, in which "{folder-hash}"
	// is what Codex derives from its folder.
	Keyring string `yaml:"keyring"`
	User    string `yaml:"user"`
}

// AccountSpec says where the account's identity stands. ID values must all be
// equal for two logins to be the same account; Name is for people.
type AccountSpec struct {
	// Claims are in the id token, Answer in the token answer, File in a further
	// file of the host's at the same positions, URL in what a GET with the new
	// token answers.
	Claims []Place `yaml:"claims"`
	Answer []Place `yaml:"answer"`
	File   string  `yaml:"file"`
	Env    string  `yaml:"env"`
	FileAt []Place `yaml:"file-at"`
	URL    string  `yaml:"url"`
	URLAt  []Place `yaml:"url-at"`
	// Name is which of these is the one that a person knows; from 0.
	Name int `yaml:"name"`
}

// Load reads one description.
func Load(fsys fs.FS, name string) (*Spec, error) {
	if name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return nil, fmt.Errorf("unknown login %q (known: %s)", name, strings.Join(Names(fsys), ", "))
	}
	data, err := fs.ReadFile(fsys, path.Join("logins", name+".yaml"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("unknown login %q (known: %s)", name, strings.Join(Names(fsys), ", "))
	}
	if err != nil {
		return nil, fmt.Errorf("logins: %w", err)
	}
	s := &Spec{}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(s); err != nil {
		return nil, fmt.Errorf("logins/%s.yaml: %w", name, err)
	}
	if s.Name != name {
		return nil, fmt.Errorf("logins/%s.yaml: login is called %q, unlike its file", name, s.Name)
	}
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("logins/%s.yaml: %w", name, err)
	}
	return s, nil
}

// Names lists the descriptions.
func Names(fsys fs.FS) []string {
	entries, _ := fs.ReadDir(fsys, "logins")
	var names []string
	for _, e := range entries {
		if n, ok := strings.CutSuffix(e.Name(), ".yaml"); ok {
			names = append(names, n)
		}
	}
	return names
}

func (s *Spec) check() error {
	switch {
	case s.Description == "" || s.Again == "" || len(s.Stores) == 0:
		return errors.New("needs description, again and stores")
	case s.Format != "json" && s.Format != "gh":
		return fmt.Errorf("unknown format %q", s.Format)
	case s.Format == "json" && len(s.At.Access) == 0:
		return errors.New("does not say where the access token stands")
	case !slices.Contains([]string{"json", "form"}, s.Endpoint.Encode):
		return fmt.Errorf("unknown encoding %q", s.Endpoint.Encode)
	case s.Endpoint.Client == "":
		return errors.New("has no client id")
	}
	for _, u := range append(s.Endpoints(), s.Account.URL) {
		if u == "" {
			continue
		}
		p, err := url.Parse(u)
		if err != nil || p.Scheme != "https" || p.Host == "" || p.RawQuery != "" || p.Port() != "" || p.User != nil || p.Path == "" {
			return fmt.Errorf("%q is not an https URL of a token endpoint", u)
		}
	}
	for _, st := range s.Stores {
		if (st.File == "") == (st.Keyring == "") {
			return errors.New("a store is a file or a keyring entry")
		}
		if st.File != "" && (strings.Contains(st.File, "/") || !strings.HasPrefix(st.Folder, "~/")) {
			return fmt.Errorf("the store %q is not a file in a folder of the home", st.File)
		}
	}
	for _, sh := range []string{s.Inside.Access, s.Inside.Refresh} {
		if sh != "jwt" && sh != "" && len(catalog.Shape(sh).New(zeros{})) < 20 {
			return fmt.Errorf("%q is no shape of a placeholder", sh)
		}
	}
	if s.Inside.Access == "" {
		return errors.New("the access placeholder has no shape")
	}
	if s.Inside.File == "" && len(s.Inside.TokenEnv) == 0 {
		return errors.New("there is nothing inside")
	}
	return nil
}

// zeros is a source for checking shapes, never for placeholders.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// Endpoints lists the URLs whose POST requests are answered on the host.
func (s *Spec) Endpoints() []string {
	out := append([]string{s.Endpoint.URL}, s.Endpoint.Also...)
	if s.Endpoint.Device != "" {
		out = append(out, s.Endpoint.Device)
	}
	return out
}
