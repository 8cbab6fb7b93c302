package trust

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Record says that a folder is trusted at a content.
type Record struct {
	Version int       `json:"version"`
	Folder  string    `json:"folder"`
	Digest  string    `json:"digest"`
	Trusted time.Time `json:"trusted"`
	Items   []Item    `json:"items"`
}

// Store is the folder of the records. It need not exist.
type Store struct{ Dir string }

func (s Store) broken(err error) error {
	return vocabulary.Exitf(vocabulary.ExitRefused, "the trust store %s can't be believed: %v\nnothing was started\nlook at it, and remove what is wrong there: trust is then asked for again", Show(s.Dir), err)
}

func fileName(folder string) string {
	sum := sha256.Sum256([]byte(folder))
	return hex.EncodeToString(sum[:16]) + ".json"
}

// Lookup returns the record of a folder, or nil.
func (s Store) Lookup(folder string) (*Record, error) {
	d, err := openDir(s.Dir, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, s.broken(err)
	}
	defer d.close()
	return s.load(d, fileName(folder))
}

func (s Store) load(d *ownDir, name string) (*Record, error) {
	data, err := d.read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		var r *Record
		if r, err = parseRecord(data); err == nil {
			if fileName(r.Folder) == name {
				return r, nil
			}
			err = errors.New("it is about another folder")
		}
	}
	return nil, s.broken(fmt.Errorf("%s: %w", name, err))
}

// List returns all records, by folder.
func (s Store) List() ([]*Record, error) {
	d, err := openDir(s.Dir, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, s.broken(err)
	}
	defer d.close()
	names, err := d.names()
	if err != nil {
		return nil, s.broken(err)
	}
	var out []*Record
	for _, name := range names {
		if !strings.HasSuffix(name, ".json") {
			continue
		}
		r, err := s.load(d, name)
		if err != nil {
			return nil, err
		}
		if r != nil {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b *Record) int { return strings.Compare(a.Folder, b.Folder) })
	return out, nil
}

// Add trusts a folder at the content that was scanned.
func (s Store) Add(sc *Scan, now time.Time) error {
	if sc.Problem != "" {
		return vocabulary.Exitf(vocabulary.ExitRefused, "%s can't be trusted: %s", Show(sc.Folder), sc.Problem)
	}
	r := Record{Version: 1, Folder: sc.Folder, Digest: sc.Digest(), Trusted: now.UTC().Truncate(time.Second), Items: slices.Clone(sc.Items)}
	data, err := json.Marshal(r)
	if err == nil && len(data) > maxRecord {
		for i := range r.Items {
			r.Items[i].Text = nil
		}
		data, err = json.Marshal(r)
	}
	if err != nil {
		return err
	}
	// What could not be read again is never written.
	if _, err := parseRecord(data); err != nil {
		return vocabulary.Exitf(vocabulary.ExitRefused, "%s can't be trusted: %v", Show(sc.Folder), err)
	}
	d, err := openDir(s.Dir, true)
	if err != nil {
		return s.broken(err)
	}
	defer d.close()
	return d.write(fileName(sc.Folder), data)
}

// Remove takes a folder's trust back; false: there was none.
func (s Store) Remove(folder string) (bool, error) {
	d, err := openDir(s.Dir, false)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, s.broken(err)
	}
	defer d.close()
	err = d.remove(fileName(folder))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// parseRecord accepts exactly what Add writes.
func parseRecord(data []byte) (*Record, error) {
	if len(data) > maxRecord {
		return nil, fmt.Errorf("more than %d bytes", maxRecord)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	var r Record
	if err := dec.Decode(&r); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the record")
	}
	switch {
	case r.Version != 1:
		return nil, fmt.Errorf("version %d is not known", r.Version)
	case !path.IsAbs(r.Folder) || path.Clean(r.Folder) != r.Folder:
		return nil, errors.New("the folder is not an absolute path")
	case len(r.Items) > MaxFiles:
		return nil, fmt.Errorf("more than %d items", MaxFiles)
	}
	for i, it := range r.Items {
		switch {
		case it.Path == "" || path.IsAbs(it.Path) || path.Clean(it.Path) != it.Path || it.Path == ".." || strings.HasPrefix(it.Path, "../"):
			return nil, fmt.Errorf("item %d has no clean path", i)
		case i > 0 && it.Path <= r.Items[i-1].Path:
			return nil, fmt.Errorf("item %d is out of order", i)
		case it.Of != policy.TrustRuns && it.Of != policy.TrustWidens && it.Of != policy.TrustInstructs:
			return nil, fmt.Errorf("item %d has class %q", i, it.Of)
		case it.Kind != KindFile && it.Kind != KindDir && it.Kind != KindLink && it.Kind != KindOther:
			return nil, fmt.Errorf("item %d has kind %q", i, it.Kind)
		case len(it.Text) > 0:
			if sum := sha256.Sum256(it.Text); hex.EncodeToString(sum[:]) != it.Hash {
				return nil, fmt.Errorf("the content of item %d is not that of its hash", i)
			}
		}
	}
	if digest(r.Items) != r.Digest {
		return nil, errors.New("the digest is not that of its items")
	}
	return &r, nil
}
