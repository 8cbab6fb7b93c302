package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
	"github.com/bulkhead-dev/bulkhead/internal/workspace/tree"
)

const (
	format     = 1
	metaFile   = "meta.json"
	logFile    = "log"
	packFile   = "pack"
	spoolFile  = "spool"
	contentDir = "content"
)

// Journal is an open journal. Safe for concurrent use.
type Journal struct {
	// Witness, if set, sees every commit first.
	Witness Witness

	meta    Meta
	dir     *os.File
	content *os.File
	pack    *os.File
	log     *os.File // locked while the journal is open
	cloner  tree.Cloner
	looking bool // nothing is written

	draining sync.Mutex // before mu
	spool    *os.File   // nil: there is none
	drained  int64      // up to where it was taken in

	mu       sync.Mutex
	size     int64 // of the log
	broken   error // a torn line that could not be taken back: sticky
	stored   int64
	contents int64 // the last content number
	reserved int64 // of the budget, for the spool
	packed   int64 // the end of the pack
	versions []Version
	byPath   map[string][]int // indexes of versions
	underWay map[string]chan struct{}
	left     map[string]left
	base     map[string]int // versions of a path that an undo has dealt with
	commits  int            // the last commit's number
	last     *commit        // the last commit
}

// left is what Bulkhead, or the session, left at a path.
type left struct {
	State
	version int // the version this is; 0: the session's own
}

// commit is what the log says of one.
type commit struct {
	number int
	what   string
	steps  []step
	begun  bool
	ended  string // typeDone, typeBack or "" if it broke off
}

// Create makes the journal of a session in dir, which must not have one yet. dir
// is made with mode 0700; it and its parent must belong to the user alone.
func Create(dir string, m Meta) (*Journal, error) {
	if _, err := vocabulary.ParseSessionID(string(m.Session)); err != nil {
		return nil, err
	}
	if !filepath.IsAbs(m.Workspace) || filepath.Clean(m.Workspace) != m.Workspace || m.Budget < 0 {
		return nil, fmt.Errorf("journal: %s is not an absolute path, or the budget is negative", tree.Show(m.Workspace))
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	d, err := openOwn(dir)
	if err != nil {
		return nil, err
	}
	m.Format = format
	data, err := json.Marshal(m)
	if err == nil {
		err = writeNew(d, metaFile, append(data, '\n'))
	}
	if err == nil {
		err = unix.Mkdirat(int(d.Fd()), contentDir, 0o700)
	}
	if err == nil {
		err = writeNew(d, packFile, nil)
	}
	if err == nil {
		err = writeNew(d, logFile, nil)
	}
	if err == nil {
		err = d.Sync()
	}
	d.Close()
	if err != nil {
		return nil, fmt.Errorf("making a record of the workspace in %s: %w", dir, err)
	}
	return Open(dir)
}

// writeNew makes a file in one step.
func writeNew(d *os.File, name string, data []byte) error {
	tmp := "." + name + ".new"
	fd, err := unix.Openat(int(d.Fd()), tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), tmp)
	if _, err = f.Write(data); err == nil && len(data) > 0 {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = move(d, tmp, d, name)
	}
	if err != nil {
		_ = unix.Unlinkat(int(d.Fd()), tmp, 0)
	}
	return err
}

// openOwn opens a directory that nobody else could have written.
func openOwn(dir string) (*os.File, error) {
	d, err := tree.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(int(d.Fd()), &st); err == nil && (int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0) {
		err = fmt.Errorf("%s can be written by others than you", tree.Show(dir))
	}
	if err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// ReadMeta reads whose journal dir holds, without opening it.
func ReadMeta(dir string) (Meta, error) {
	d, err := openOwn(dir)
	if err != nil {
		return Meta{}, err
	}
	defer d.Close()
	return readMeta(d)
}

func readMeta(d *os.File) (Meta, error) {
	var m Meta
	data, err := readOwn(d, metaFile, 64<<10)
	if err == nil {
		m, err = parseMeta(data)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%s in %s can't be used: %w", metaFile, tree.Show(d.Name()), err)
	}
	return m, err
}

func parseMeta(data []byte) (m Meta, err error) {
	if err := json.Unmarshal(data, &m); err != nil {
		return m, err
	}
	if m.Format != format {
		return m, fmt.Errorf("format %d is not known to this version", m.Format)
	}
	if _, err := vocabulary.ParseSessionID(string(m.Session)); err != nil {
		return m, err
	}
	if !filepath.IsAbs(m.Workspace) || filepath.Clean(m.Workspace) != m.Workspace || m.Budget < 0 {
		return m, errors.New("the workspace is not an absolute path, or the budget is negative")
	}
	return m, nil
}

func readOwn(d *os.File, name string, limit int64) ([]byte, error) {
	fd, err := unix.Openat(int(d.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", name, limit)
	}
	return data, err
}

// Open opens the journal in dir. It fails with ErrRunning while another process
// has it open, and with fs.ErrNotExist if there is none.
func Open(dir string) (*Journal, error) { return openDir(dir, false) }

// Read opens it for looking only, also while another process has it open: what the
// session writes meanwhile is not seen.
func Read(dir string) (*Journal, error) { return openDir(dir, true) }

func openDir(dir string, looking bool) (*Journal, error) {
	d, err := openOwn(dir)
	if err != nil {
		return nil, err
	}
	j := &Journal{dir: d, looking: looking, byPath: map[string][]int{}, underWay: map[string]chan struct{}{}, left: map[string]left{}, base: map[string]int{}}
	if err := j.open(looking); err != nil {
		j.Close()
		return nil, err
	}
	return j, nil
}

// lock waits for those who only look whether the journal is open.
func lock(fd int) error {
	for range 20 {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		time.Sleep(2 * time.Millisecond)
	}
	return ErrRunning
}

// maxLog bounds what is read of a log: several million changes.
const maxLog = 1 << 30

func (j *Journal) open(looking bool) (err error) {
	if j.meta, err = readMeta(j.dir); err != nil {
		return err
	}
	fd, err := unix.Openat(int(j.dir.Fd()), contentDir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	j.content = os.NewFile(uintptr(fd), contentDir)
	how := unix.O_RDWR
	if looking {
		how = unix.O_RDONLY
	}
	how |= unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	if fd, err = unix.Openat(int(j.dir.Fd()), packFile, how, 0); err != nil {
		return err
	}
	j.pack = os.NewFile(uintptr(fd), packFile)
	if fd, err = unix.Openat(int(j.dir.Fd()), logFile, how|unix.O_APPEND, 0); err != nil {
		return err
	}
	j.log = os.NewFile(uintptr(fd), logFile)
	if !looking {
		if err := lock(fd); err != nil {
			return err
		}
	}
	data, err := readOwn(j.dir, logFile, maxLog)
	if err != nil {
		return err
	}
	used, err := parseLog(data, j.replay)
	if err != nil {
		return fmt.Errorf("the record in %s is damaged, and nothing is taken from it: %w", tree.Show(j.dir.Name()), err)
	}
	if !looking && used < len(data) {
		if err := j.log.Truncate(int64(used)); err != nil {
			return err
		}
	}
	j.size = int64(used)
	if err := j.openSpool(); err != nil {
		return err
	}
	if err := j.drain(); err != nil || looking {
		return err
	}
	return j.sweep()
}

// sweep removes contents that no line names: a crash came between the two.
func (j *Journal) sweep() error {
	if err := j.pack.Truncate(j.packed); err != nil {
		return err
	}
	known := make(map[string]bool, len(j.versions))
	for _, v := range j.versions {
		if v.content > 0 {
			known[strconv.FormatInt(v.content, 10)] = true
		}
	}
	list, err := tree.List(j.content)
	if err != nil {
		return err
	}
	for _, e := range list {
		if !known[e.Name] {
			_ = unix.Unlinkat(int(j.content.Fd()), e.Name, 0)
		}
	}
	return nil
}

// replay takes one line of the log into memory.
func (j *Journal) replay(e entry) error {
	path := string(e.Path)
	switch e.Type {
	case typeKeep:
		if e.Number != len(j.byPath[path])+1 {
			return errors.New("a version is missing")
		}
		j.addVersion(Version{Path: path, Number: e.Number, State: *e.Is, Target: string(e.Target), Kept: e.Is.Kind != Other && !e.Lost,
			Time: time.Unix(0, e.At), content: e.Content, pack: e.Pack, spool: e.Spool, sum: e.Sum, Foreign: e.Foreign, stored: e.Stored})
		return nil
	case typeLeft:
		j.left[path] = left{*e.Is, e.Number}
		return nil
	case typePrepare:
		if e.Commit != j.commits+1 {
			return errors.New("a commit is missing")
		}
		j.commits, j.last = e.Commit, &commit{number: e.Commit, what: e.What}
		return nil
	}
	c := j.last
	if c == nil || c.number != e.Commit || c.ended != "" {
		return errors.New("it belongs to no commit")
	}
	switch e.Type {
	case typeStep:
		if c.begun || e.Slot != len(c.steps)+1 {
			return errors.New("a step out of order")
		}
		c.steps = append(c.steps, step{path: path, slot: e.Slot, was: *e.Was, is: *e.Is, back: e.Number})
	case typeBegin:
		if c.begun {
			return errors.New("it began before")
		}
		c.begun = true
	default:
		if c.ended = e.Type; e.Type == typeDone {
			j.settle(c)
		} else {
			j.unsettle(c)
		}
	}
	return nil
}

// unsettle notes that a commit was taken back: what it found stands there again,
// as far as it is not somebody else's work.
func (j *Journal) unsettle(c *commit) {
	for _, s := range c.steps {
		if list := j.byPath[s.path]; len(list) > 0 && !j.versions[list[len(list)-1]].Foreign {
			j.left[s.path] = left{State: s.was}
		}
	}
}

// settle notes what a finished commit left. Of what an undo brought back, a later
// change is undone to what stood there then.
func (j *Journal) settle(c *commit) {
	replaced := map[string]bool{}
	for _, s := range c.steps {
		j.left[s.path] = left{s.is, s.back}
		replaced[s.path] = s.is.Kind != Dir
		if c.what == whatUndo {
			j.base[s.path] = len(j.byPath[s.path])
		}
	}
	for p, versions := range j.byPath {
		if !inside(replaced, p) {
			continue
		}
		j.left[p] = left{State: State{Kind: Absent}}
		if c.what == whatUndo {
			j.base[p] = len(versions)
		}
	}
}

func (j *Journal) addVersion(v Version) {
	j.byPath[v.Path] = append(j.byPath[v.Path], len(j.versions))
	j.versions = append(j.versions, v)
	j.contents = max(j.contents, v.content)
	if v.pack > 0 {
		j.packed = max(j.packed, v.pack-1+v.stored)
	}
	if v.spool > 0 {
		j.drained = max(j.drained, v.spool-1+v.stored)
	}
	j.stored += v.stored
}

// write appends entries, all or none of them. The caller holds mu.
func (j *Journal) write(sync bool, entries ...*entry) error {
	if j.broken != nil {
		return j.broken
	}
	var b []byte
	var err error
	for _, e := range entries {
		if b, err = appendEntry(b, e); err != nil {
			return err
		}
	}
	n, err := j.log.Write(b)
	if err == nil && sync {
		n, err = 0, j.log.Sync()
		if err == nil {
			n = len(b)
		}
	}
	if err != nil {
		if terr := j.log.Truncate(j.size); terr != nil {
			j.broken = fmt.Errorf("the record of the workspace: %w", errors.Join(err, terr))
		}
		return fmt.Errorf("the record of the workspace: %w", err)
	}
	j.size += int64(n)
	return nil
}

// Close lets another process open the journal.
func (j *Journal) Close() error {
	for _, f := range []*os.File{j.log, j.pack, j.content, j.dir, j.spool} {
		if f != nil {
			f.Close()
		}
	}
	return nil
}

// Meta says whose journal it is.
func (j *Journal) Meta() Meta { return j.meta }

// Since is when the journal was made, by the clock that the kernel gives files.
func (j *Journal) Since() (int64, error) {
	var st unix.Stat_t
	err := unix.Fstatat(int(j.dir.Fd()), metaFile, &st, unix.AT_SYMLINK_NOFOLLOW)
	return st.Mtim.Nano(), err
}

// Last names the last commit; ended is false if it broke off.
func (j *Journal) Last() (what string, ended bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch c := j.last; {
	case c == nil || !c.begun || c.ended == typeBack:
		return "", true
	default:
		return c.what, c.ended != ""
	}
}

// Running reports whether another process has the journal open; for one that Read
// opened.
func (j *Journal) Running() (bool, error) {
	err := unix.Flock(int(j.log.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if err == nil {
		return false, unix.Flock(int(j.log.Fd()), unix.LOCK_UN)
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}

// Left returns what Bulkhead, or the session, left at path last, unless it is not
// known or is somebody else's work, brought back.
func (j *Journal) Left(path string) (State, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	l, ok := j.left[path]
	if list := j.byPath[path]; l.version > 0 && l.version <= len(list) && j.versions[list[l.version-1]].Foreign {
		return State{}, false
	}
	return l.State, ok
}

// Stored is how many bytes of contents are kept.
func (j *Journal) Stored() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.stored
}

// Versions returns all versions in the order of their keeping.
func (j *Journal) Versions() []Version {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.versions)
}
