package catalog

import (
	"errors"
	"fmt"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/catalog/gitwire"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
)

// pushBody is a git-receive-pack body: the refs to change, then a pack, which
// is not read. Each ref is a use of its own, of the operation, or where the ref
// is to be removed of the feature at "delete"; push options are the feature at
// "option". Both are refused where the section names no feature for them.
type pushBody struct{ *bodySpec }

func newPush(b *bodySpec) (bodyReader, error) {
	if b.otherwise != "" || len(b.closed) > 0 {
		return nil, errors.New("a git-receive-pack body has neither `keys` nor `otherwise`")
	}
	for at := range b.rules {
		if at != "delete" && at != "option" {
			return nil, errors.New("a git-receive-pack body has features at delete and at option only")
		}
	}
	return pushBody{b}, nil
}

func (b pushBody) need() Need {
	return Need{Head: func(soFar []byte) (bool, error) {
		_, _, err := gitwire.ReadPush(soFar)
		return gitHead(err)
	}, HeadMax: gitwire.MaxHead, Stream: int64(b.limit)}
}

func gitHead(err error) (bool, error) {
	if errors.Is(err, gitwire.ErrShort) {
		return false, nil
	}
	return err == nil, err
}

func (b pushBody) features(op *Operation, resource string, r Request) (Contents, error) {
	if err := checkGit(r, "application/x-git-receive-pack-request"); err != nil {
		return Contents{}, err
	}
	p, _, err := gitwire.ReadPush(r.Body)
	if err != nil {
		return Contents{}, fmt.Errorf("%w: %w", ErrBadBody, err)
	}
	return Contents{Uses: b.uses(op, resource, p)}, nil
}

// uses lists what a push needs.
func (b *bodySpec) uses(op *Operation, resource string, p gitwire.Push) []Use {
	var uses []Use
	for _, u := range p.Updates {
		use := Use{Operation: op.Name, Where: "the update of " + clip(u.Ref, 100), Own: true}
		if u.Deletes() {
			use.Operation, use.Where = b.presentAt("delete"), "the removal of "+clip(u.Ref, 100)
		}
		if resource != "" {
			use.Resource = resource + "@" + u.Ref
		}
		uses = append(uses, use)
	}
	if len(p.Options) > 0 {
		uses = append(uses, Use{Operation: b.presentAt("option"), Where: "a push option", Resource: resource, Own: true})
	}
	return uses
}

func (b *bodySpec) presentAt(key string) string {
	for _, r := range b.rules[key] {
		if len(r.at) == 1 && r.present != "" {
			return r.present
		}
	}
	return ""
}

// PushUses lists what the push with this head (gitwire.ReadPush) needs over
// SSH; op and resource are what Match found for it.
func (s *Service) PushUses(op *Operation, resource string, head []byte) ([]Use, error) {
	b := s.bodies[op.body]
	if b == nil || b.kind != "git-receive-pack" {
		return nil, fmt.Errorf("%w: %s is no push", ErrBadBody, op.Name)
	}
	p, _, err := gitwire.ReadPush(head)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadBody, err)
	}
	return b.uses(op, resource, p), nil
}

// fetchBody is a git-upload-pack body. Only its beginning is read: whatever
// follows stays within the repository that the path names.
type fetchBody struct{ *bodySpec }

func newFetch(b *bodySpec) (bodyReader, error) {
	if b.otherwise != "" || len(b.closed) > 0 || len(b.rules) > 0 {
		return nil, errors.New("a git-upload-pack body has limit: only")
	}
	return fetchBody{b}, nil
}

func (b fetchBody) need() Need {
	return Need{Head: func(soFar []byte) (bool, error) {
		_, _, err := gitwire.ReadFetch(soFar)
		return gitHead(err)
	}, HeadMax: gitwire.MaxHead, Stream: int64(b.limit), Gzip: true}
}

func (b fetchBody) features(_ *Operation, _ string, r Request) (Contents, error) {
	if err := checkGit(r, "application/x-git-upload-pack-request"); err != nil {
		return Contents{}, err
	}
	if _, _, err := gitwire.ReadFetch(r.Body); err != nil {
		return Contents{}, fmt.Errorf("%w: %w", ErrBadBody, err)
	}
	return Contents{}, nil
}

// checkGit holds a body to the one form that git writes. What came gzip'd was
// decoded by who filled r.Body, and goes on decoded.
func checkGit(r Request, contentType string) error {
	for _, v := range r.Header.Values("Content-Encoding") {
		if v != "" && !strings.EqualFold(v, "identity") {
			return fmt.Errorf("%w: it is compressed, so it can't be judged", ErrBadBody)
		}
	}
	if v := r.Header.Values("Content-Type"); len(v) != 1 || v[0] != contentType {
		return fmt.Errorf("%w: its Content-Type is not %s", ErrBadBody, contentType)
	}
	return nil
}

// IdentifySSH says what a command line means that a client sent to an SSH
// server: the operation, and the repository. A push is to be judged again when
// its head is there (PushUses). The error is ErrUnknownOperation.
func (s *Service) IdentifySSH(host hostport.Host, port hostport.Port, user, command string) (Operation, string, error) {
	known := false
	for _, e := range s.Endpoints {
		known = known || e.Scheme == "ssh" && e.Port == port && e.User == user && e.Host.Match(host)
	}
	c, err := gitwire.ReadCommand(command)
	switch {
	case !known:
		return Operation{}, "", fmt.Errorf("%w: %s has no SSH server at %s@%s:%d", ErrUnknownOperation, s.Name, clip(user, 40), host, port)
	case err != nil:
		return Operation{}, "", fmt.Errorf("%w: %w", ErrUnknownOperation, err)
	}
	method := strings.ToUpper(c.Name)
	if c.Argument != "" {
		method += "-" + strings.ToUpper(c.Argument)
	}
	return s.Route(Request{Scheme: "ssh", Host: host, Port: port, Method: method, Path: "/" + c.Path})
}
