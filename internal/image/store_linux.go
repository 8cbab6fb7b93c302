package image

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/image/unpack"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

const nonblock = unix.O_NONBLOCK

// Store is a cache of unpacked images: roots/HEX (rootfs and image.json), by the
// digest of the configuration, which tells of all layers; names/HEX, what names
// stand for; and begun/, where roots are made. Several processes may use one.
type Store struct {
	dir string
	// Limits and Patience are defaults that tests change.
	Limits   unpack.Limits
	Patience Patience
}

// Open opens the store in dir, makes it if it is not there, and sweeps what
// others began and did not end.
func Open(dir string) (*Store, error) {
	s := &Store{dir: dir, Limits: DefaultLimits, Patience: DefaultPatience}
	for _, d := range []string{dir, s.at("roots"), s.at("names"), s.at("begun"), s.at("locks")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, s.unusable(err)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return nil, s.unusable(err)
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return nil, s.unusable(errors.New("others may write there, or it is somebody else's"))
	}
	return s, s.sweep()
}

func (s *Store) at(elements ...string) string {
	return filepath.Join(append([]string{s.dir}, elements...)...)
}

func (s *Store) unusable(err error) error {
	return vocabulary.Exitf(vocabulary.ExitRefused, "the cache of images in %s can't be used: %w\nfree space there, or name a folder of your own for caches: XDG_CACHE_HOME", s.dir, err)
}

// lock opens a file and locks it, if nobody else holds it in a way that
// contradicts: how is LOCK_SH or LOCK_EX. It is released by closing.
func lock(path string, flags int, how int) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, flags, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err != nil {
			f.Close()
			return nil, err
		}
		// Whoever held it may have removed it meanwhile.
		var now, held unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &held); err == nil && unix.Stat(path, &now) == nil && now.Ino == held.Ino && now.Dev == held.Dev {
			return f, nil
		}
		f.Close()
		if flags&os.O_CREATE == 0 {
			return nil, fs.ErrNotExist
		}
	}
}

// lockRoot locks a root's image.json. Whoever lists images holds it for a moment.
func lockRoot(path string, how int) (f *os.File, err error) {
	for range 50 {
		if f, err = lock(path, os.O_RDONLY, how); !errors.Is(err, unix.EWOULDBLOCK) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return f, err
}

// sweep removes what was begun by processes that live no more.
func (s *Store) sweep() error {
	list, err := os.ReadDir(s.at("begun"))
	if err != nil {
		return s.unusable(err)
	}
	for _, e := range list {
		name, isLock := strings.CutSuffix(e.Name(), ".lock")
		if !isLock {
			if _, err := os.Lstat(s.at("begun", e.Name()+".lock")); err == nil {
				continue
			}
			_ = os.RemoveAll(s.at("begun", e.Name())) // its lock went first
			continue
		}
		if f, err := lock(s.at("begun", e.Name()), os.O_RDWR, unix.LOCK_EX); err == nil {
			_ = os.RemoveAll(s.at("begun", name))
			_ = os.Remove(f.Name())
			f.Close()
		}
	}
	return nil
}

// begin makes a folder that is swept unless it is committed or ended.
func (s *Store) begin() (dir string, end func(), err error) {
	var name string
	var f *os.File
	for range 10 { // a sweep may be at it first
		name = strings.ToLower(rand.Text())
		if f, err = lock(s.at("begun", name+".lock"), os.O_RDWR|os.O_CREATE|os.O_EXCL, unix.LOCK_EX); !errors.Is(err, unix.EWOULDBLOCK) {
			break
		}
	}
	if err != nil {
		return "", nil, s.unusable(err)
	}
	dir = s.at("begun", name)
	end = func() {
		_ = os.RemoveAll(dir)
		_ = os.Remove(f.Name())
		f.Close()
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		end()
		return "", nil, s.unusable(err)
	}
	return dir, end, nil
}

// about is image.json.
type about struct {
	ID     string    `json:"id"`
	Config Config    `json:"config"`
	Bytes  int64     `json:"bytes"`
	Files  int       `json:"files"`
	Made   time.Time `json:"made"`
}

// Image is an unpacked image in use: nobody removes it before Close.
type Image struct {
	ID     string
	Root   string // the folder
	Config Config
	held   *os.File
}

// Close lets go.
func (i *Image) Close() {
	if i != nil && i.held != nil {
		i.held.Close()
	}
}

// hold opens the image with an id; nil if it is not there.
func (s *Store) hold(id digest) (*Image, error) {
	f, err := lockRoot(s.at("roots", id.hex(), "image.json"), unix.LOCK_SH)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, s.unusable(err)
	}
	text, err := readDocument(f)
	var a about
	if err == nil {
		err = json.Unmarshal(text, &a)
	}
	if err != nil {
		f.Close()
		return nil, s.unusable(err)
	}
	return &Image{ID: string(id), Root: s.at("roots", id.hex(), "rootfs"), Config: a.Config, held: f}, nil
}

func nameFile(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:]) + ".json"
}

// named is a file of names/.
type named struct {
	Named
	ID digest `json:"id"`
}

func (s *Store) readName(file string) (n named, err error) {
	text, err := os.ReadFile(s.at("names", file))
	if err != nil {
		return n, err
	}
	if err := json.Unmarshal(text, &n); err != nil {
		return n, err
	}
	return n, n.ID.check()
}

// Find is the image that a registry's name stood for when it was pulled last; nil
// if it never was.
func (s *Store) Find(ref Reference) (*Image, error) {
	if ref.Kind != Registry {
		return nil, nil
	}
	name, err := CanonicalName(ref.Where)
	if err != nil {
		return nil, err
	}
	n, err := s.readName(nameFile(name))
	if err != nil {
		return nil, nil
	}
	return s.hold(n.ID)
}

// Pull gets an image from where it is, and unpacks it unless it is there already.
func (s *Store) Pull(ctx context.Context, ref Reference, progress Progress) (*Image, error) {
	if progress == nil {
		progress = func(int64, int64) {}
	}
	src, err := s.open(ctx, ref)
	if err != nil {
		return nil, refuse(ref, "%w", err)
	}
	defer src.close()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	// One process unpacks an image, others wait for it.
	busy, err := s.turn(ctx, src.id)
	if err != nil {
		return nil, err
	}
	defer busy.Close()
	i, err := s.hold(src.id)
	if err != nil {
		return nil, err
	}
	if i == nil {
		if i, err = s.make(ctx, ref, src, progress); err != nil {
			return nil, err
		}
	}
	name := ref.String()
	if ref.Kind == Registry {
		if name, err = CanonicalName(ref.Where); err != nil {
			return nil, err
		}
	}
	if err := s.name(name, src); err != nil {
		i.Close()
		return nil, err
	}
	return i, nil
}

func (s *Store) open(ctx context.Context, ref Reference) (*source, error) {
	switch ref.Kind {
	case Registry:
		return openRegistry(ctx, ref, s.Limits, s.Patience)
	case Layout:
		return openLayout(ref, s.Limits)
	case Archive:
		return openArchive(ref, s.Limits)
	}
	return nil, fmt.Errorf("unknown kind %d", ref.Kind)
}

// turn waits until no other process unpacks this image.
func (s *Store) turn(ctx context.Context, id digest) (*os.File, error) {
	for {
		f, err := lock(s.at("locks", id.hex()), os.O_RDWR|os.O_CREATE, unix.LOCK_EX)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, s.unusable(err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// make unpacks. What stands below roots/ is complete: it comes there by a rename.
func (s *Store) make(ctx context.Context, ref Reference, src *source, progress Progress) (*Image, error) {
	dir, end, err := s.begin()
	if err != nil {
		return nil, err
	}
	defer end()
	root := filepath.Join(dir, "rootfs")
	if err := os.Mkdir(root, 0o755); err != nil {
		return nil, s.unusable(err)
	}
	f, err := os.Open(root)
	if err != nil {
		return nil, s.unusable(err)
	}
	defer f.Close()
	done, err := unpack.Run(ctx, f, src.unpackable(), s.Limits, progress)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, refuse(ref, "%w", err)
	}
	text, err := json.Marshal(about{string(src.id), Config{src.config.Config.Env, src.config.Created}, done.Bytes, done.Files, time.Now()})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "image.json"), text, 0o600)
	}
	if err == nil {
		err = unix.Syncfs(int(f.Fd())) // before the name: after a crash a root is whole
	}
	if err == nil {
		err = os.Rename(dir, s.at("roots", src.id.hex()))
	}
	if err != nil {
		return nil, s.unusable(err)
	}
	i, err := s.hold(src.id)
	if err == nil && i == nil {
		err = s.unusable(errors.New("the image was removed at once"))
	}
	return i, err
}

// name writes down what a name stands for.
func (s *Store) name(name string, src *source) error {
	text, err := json.Marshal(named{Named{name, string(src.manifest), time.Now()}, src.id})
	if err != nil {
		return err
	}
	dir, end, err := s.begin()
	if err != nil {
		return err
	}
	defer end()
	if err := os.WriteFile(filepath.Join(dir, "name"), text, 0o600); err != nil {
		return s.unusable(err)
	}
	if err := os.Rename(filepath.Join(dir, "name"), s.at("names", nameFile(name))); err != nil {
		return s.unusable(err)
	}
	return nil
}

func (s *Store) names() (map[digest][]Named, error) {
	list, err := os.ReadDir(s.at("names"))
	if err != nil {
		return nil, s.unusable(err)
	}
	out := map[digest][]Named{}
	for _, e := range list {
		if n, err := s.readName(e.Name()); err == nil {
			out[n.ID] = append(out[n.ID], n.Named)
		}
	}
	return out, nil
}

// List is all images, the one pulled last first.
func (s *Store) List() ([]Entry, error) {
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	list, err := os.ReadDir(s.at("roots"))
	if err != nil {
		return nil, s.unusable(err)
	}
	out := []Entry{}
	for _, d := range list {
		text, err := os.ReadFile(s.at("roots", d.Name(), "image.json"))
		var a about
		if err != nil || json.Unmarshal(text, &a) != nil {
			continue
		}
		e := Entry{Names: names[digest(a.ID)], ID: a.ID, Bytes: a.Bytes, Files: a.Files, Created: a.Config.Created, Pulled: a.Made}
		slices.SortFunc(e.Names, func(a, b Named) int { return b.Pulled.Compare(a.Pulled) })
		if len(e.Names) > 0 {
			e.Pulled = e.Names[0].Pulled
		}
		if f, err := lock(s.at("roots", d.Name(), "image.json"), os.O_RDONLY, unix.LOCK_EX); err == nil {
			f.Close()
		} else {
			e.InUse = errors.Is(err, unix.EWOULDBLOCK)
		}
		out = append(out, e)
	}
	slices.SortStableFunc(out, func(a, b Entry) int { return b.Pulled.Compare(a.Pulled) })
	return out, nil
}

// Remove takes a name away, or an image by its id (or the first 12 digits of it or
// more) with all of its names. An image that has no name any more goes, unless a
// session uses it: then nothing is changed. It returns how many bytes went.
func (s *Store) Remove(what string) (int64, error) {
	names, err := s.names()
	if err != nil {
		return 0, err
	}
	list, err := s.List()
	if err != nil {
		return 0, err
	}
	canonical, _ := CanonicalName(what)
	short := strings.TrimPrefix(what, "sha256:")
	for _, e := range list {
		id := digest(e.ID)
		all := len(short) >= 12 && strings.HasPrefix(id.hex(), short)
		gone := []string{}
		for _, n := range names[id] {
			if all || n.Name == what || n.Name == canonical {
				gone = append(gone, n.Name)
			}
		}
		if !all && len(gone) == 0 {
			continue
		}
		if len(gone) < len(names[id]) {
			return 0, s.unname(gone)
		}
		return e.Bytes, s.removeRoot(id, what, gone)
	}
	return 0, vocabulary.Exitf(vocabulary.ExitRefused, "there is no image %s\nsee: bulkhead image list", unpack.Printable(what))
}

func (s *Store) unname(names []string) error {
	for _, n := range names {
		if err := os.Remove(s.at("names", nameFile(n))); err != nil {
			return s.unusable(err)
		}
	}
	return nil
}

func (s *Store) removeRoot(id digest, what string, names []string) error {
	f, err := lockRoot(s.at("roots", id.hex(), "image.json"), unix.LOCK_EX)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return vocabulary.Exitf(vocabulary.ExitRefused, "image %s is in use by a session; nothing was removed\nstop it first: bulkhead session list", unpack.Printable(what))
	}
	if err != nil {
		return s.unusable(err)
	}
	defer f.Close()
	if err := s.unname(names); err != nil {
		return err
	}
	dir, end, err := s.begin()
	if err != nil {
		return err
	}
	defer end()
	if err := os.Rename(s.at("roots", id.hex()), filepath.Join(dir, "gone")); err != nil {
		return s.unusable(err)
	}
	return nil
}
