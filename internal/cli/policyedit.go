package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/bulkhead-dev/bulkhead/internal/policy"
)

// policyFile is a policy as text, to be changed by whole lines: comments, order
// and style of everything else stay. What can't be changed so is refused with
// the line that a person should write.
type policyFile struct {
	path   string
	text   []byte
	policy *policy.Policy
	root   *yaml.Node // the document's mapping
}

// readPolicyFile reads the named policy or the user's own; a missing one of the
// user's is an empty policy.
func readPolicyFile(path string) (*policyFile, error) {
	own, err := userPolicy()
	if path == "" {
		if err != nil {
			return nil, err
		}
		path = own
	}
	f := &policyFile{path: path}
	f.text, err = readBounded(path)
	if errors.Is(err, fs.ErrNotExist) && path == own {
		f.text = []byte("version: 1\n")
	} else if err != nil {
		return nil, err
	}
	return f, f.parse()
}

func (f *policyFile) parse() (err error) {
	if f.policy, err = policy.Parse(f.path, f.text); err != nil {
		return err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(f.text, &doc); err != nil || len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return fmt.Errorf("%s is not a mapping", f.path)
	}
	f.root = doc.Content[0]
	return nil
}

// credential finds a credential of the file itself.
func (f *policyFile) credential(name string) (policy.Credential, bool) {
	for _, c := range f.policy.Credentials {
		if c.Name == name {
			return c, true
		}
	}
	return policy.Credential{}, false
}

var errByHand = errors.New("its credentials are not written one a line")

func child(m *yaml.Node, key string) (k, v *yaml.Node) {
	for i := 0; m != nil && m.Kind == yaml.MappingNode && i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			return m.Content[i], m.Content[i+1]
		}
	}
	return nil, nil
}

// with returns the text with one more line under credentials.
func (f *policyFile) with(name, entry string) ([]byte, error) {
	line := name + ": " + entry + "\n"
	lines := bytes.SplitAfter(f.text, []byte("\n"))
	if n := len(lines); n > 0 && len(lines[n-1]) == 0 {
		lines = lines[:n-1]
	} else if n > 0 && !bytes.HasSuffix(lines[n-1], []byte("\n")) {
		lines[n-1] = append(bytes.Clone(lines[n-1]), '\n')
	}
	key, list := child(f.root, "credentials")
	switch {
	case f.root.Style&yaml.FlowStyle != 0:
		return nil, errByHand
	case key == nil:
		return bytes.Join(append(lines, []byte("credentials:\n  "+line)), nil), nil
	case list.Kind == yaml.MappingNode && list.Style&yaml.FlowStyle == 0 && len(list.Content) > 0:
		line = strings.Repeat(" ", list.Content[0].Column-1) + line
	case list.Tag == "!!null" && list.Value == "":
		line = "  " + line
	default:
		return nil, errByHand
	}
	at := key.Line // the line after the key's
	return bytes.Join([][]byte{bytes.Join(lines[:at], nil), []byte(line), bytes.Join(lines[at:], nil)}, nil), nil
}

// without returns the text without the credential, which must be all that
// stands in its lines.
func (f *policyFile) without(name string) ([]byte, error) {
	section, list := child(f.root, "credentials")
	key, _ := child(list, name)
	if key == nil || list.Style&yaml.FlowStyle != 0 {
		return nil, errByHand
	}
	lines := bytes.SplitAfter(f.text, []byte("\n"))
	from, to := key.Line-1, len(lines)
	for i := key.Line; i < len(lines); i++ {
		// Up to the next thing that is not indented further.
		text := strings.TrimRight(string(lines[i]), "\r\n")
		if indent := len(text) - len(strings.TrimLeft(text, " ")); strings.TrimSpace(text) != "" && indent < key.Column {
			to = i
			break
		}
	}
	if len(list.Content) == 2 { // the last one: an empty section is an error
		from = section.Line - 1
		if section.Column != 1 {
			return nil, errByHand
		}
	}
	return bytes.Join([][]byte{bytes.Join(lines[:from], nil), bytes.Join(lines[to:], nil)}, nil), nil
}

// check says whether a new text is a valid policy.
func (f *policyFile) check(text []byte) error {
	_, err := policy.Parse(f.path, text)
	return err
}

// write replaces the file in one step; a link stays a link.
func (f *policyFile) write(text []byte) error {
	path, mode := f.path, fs.FileMode(0o600)
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	if st, err := os.Stat(path); err == nil {
		mode = st.Mode().Perm()
	} else if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return replaceFile(path, text, mode)
}

// replaceFile writes beside the file and renames.
func replaceFile(path string, data []byte, mode fs.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".bulkhead-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	if err := tmp.Chmod(mode); err != nil {
		return err
	}
	if _, err := tmp.Write(data); err != nil {
		return err
	}
	if err := tmp.Sync(); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}
