package journal

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/workspace/tree"
)

// StateOf says what a file is by what the kernel says of it.
func StateOf(st *unix.Stat_t) State {
	s := State{Kind: Other, Mode: st.Mode & 0o7777, Mtime: st.Mtim.Nano(), Inode: st.Ino, UID: st.Uid, GID: st.Gid}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		s.Kind, s.Size = File, st.Size
	case unix.S_IFDIR:
		s.Kind, s.Mtime = Dir, 0
	case unix.S_IFLNK:
		s.Kind, s.Size = Link, st.Size
	}
	return s
}

// Look returns what stands at path now.
func Look(root *os.File, path string) (State, error) {
	if err := tree.Check(path); err != nil {
		return State{}, err
	}
	st, ok, err := tree.Lstat(root, path)
	if err != nil {
		return State{}, fmt.Errorf("%s: %w", tree.Show(path), err)
	}
	if !ok {
		return State{Kind: Absent}, nil
	}
	return StateOf(&st), nil
}

// Keep records what is at path (relative to root, the workspace) before it is
// changed: the content of a file, the target of a link, that there is a directory
// or nothing. Only a path's first call does something, unless force asks for a
// version more. What lies in a folder that did not exist at its own first Keep is
// covered by that.
//
// It returns when the path may be changed. After an error it may not: ErrBudget;
// fs.ErrPermission for a file that can't be read; unix.ELOOP for a link on the
// way; a full disk. Nothing is flushed to disk: see Sync.
func (j *Journal) Keep(root *os.File, path string, force bool) (Version, error) {
	if err := j.drain(); err != nil {
		return Version{}, err
	}
	return j.keepNow(root, path, force, false)
}

func (j *Journal) keepNow(root *os.File, path string, force, foreign bool) (Version, error) {
	return j.keep(path, force, foreign, func() (Version, error) { return j.take(root, path, false) })
}

// Note records that path is changed although its content can't be kept. Undo then
// names it.
func (j *Journal) Note(root *os.File, path string) (Version, error) {
	if err := j.drain(); err != nil {
		return Version{}, err
	}
	return j.keep(path, false, false, func() (Version, error) { return j.take(root, path, true) })
}

// Absent records that nothing stood at path before the session, on somebody's word.
func (j *Journal) Absent(path string) (Version, error) {
	if err := j.drain(); err != nil {
		return Version{}, err
	}
	return j.keep(path, false, false, func() (Version, error) { return absentVersion(path), nil })
}

func (j *Journal) keep(path string, force, foreign bool, take func() (Version, error)) (Version, error) {
	if err := tree.Check(path); err != nil {
		return Version{}, fmt.Errorf("%w: %w", errBadPath, err)
	}
	number := 0
	j.mu.Lock()
	for {
		if !force {
			if v, ok := j.covered(path); ok {
				j.mu.Unlock()
				return v, nil
			}
		}
		other := j.underWay[path]
		if other == nil {
			break
		}
		j.mu.Unlock()
		<-other
		j.mu.Lock()
	}
	done := make(chan struct{})
	j.underWay[path] = done
	number = len(j.byPath[path]) + 1
	j.mu.Unlock()

	v, err := take()
	v.Number, v.Foreign = number, foreign

	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.underWay, path)
	defer close(done)
	if err == nil && !j.looking {
		err = j.write(false, keepEntry(&v))
	}
	if err != nil {
		j.stored -= v.stored
		if v.content > 0 {
			_ = unix.Unlinkat(int(j.content.Fd()), strconv.FormatInt(v.content, 10), 0)
		}
		return Version{}, fmt.Errorf("%s can't be kept: %w", tree.Show(path), err)
	}
	j.stored -= v.stored // addVersion counts it again
	j.addVersion(v)
	return v, nil
}

func keepEntry(v *Version) *entry {
	e := &entry{Type: typeKeep, At: v.Time.UnixNano(), Path: name(v.Path), Number: v.Number, Is: &v.State, Content: v.content, Pack: v.pack, Spool: v.spool, Sum: v.sum, Stored: v.stored, Target: name(v.Target), Foreign: v.Foreign}
	e.Lost = v.Kind == File && !v.Kept
	return e
}

// covered finds the version that already says what path was.
func (j *Journal) covered(path string) (Version, bool) {
	if i, ok := j.byPath[path]; ok {
		return j.versions[i[0]], true
	}
	for i := strings.LastIndexByte(path, '/'); i > 0; i = strings.LastIndexByte(path[:i], '/') {
		if v, ok := j.byPath[path[:i]]; ok && j.versions[v[0]].Kind == Absent {
			return Version{Path: path, State: State{Kind: Absent}, Kept: true, Time: j.versions[v[0]].Time}, true
		}
	}
	return Version{}, false
}

func absentVersion(path string) Version {
	return Version{Path: path, State: State{Kind: Absent}, Kept: true, Time: time.Now()}
}

// take copies what is at path.
func (j *Journal) take(root *os.File, path string, lost bool) (Version, error) {
	v := Version{Path: path, Kept: true, Time: time.Now()}
	fd, st, err := tree.Handle(root, path)
	if tree.Absent(err) {
		return absentVersion(path), nil
	}
	if err != nil {
		return v, err
	}
	defer unix.Close(fd)
	v.State = StateOf(&st)
	switch v.Kind {
	case Link:
		v.Target, err = tree.Readlink(fd)
		if err == nil && v.Target == "" {
			err = unix.EIO
		}
	case Other:
		v.Kept = false
	case File:
		if lost {
			v.Kept = false
			return v, nil
		}
		err = j.store(fd, &st, &v)
	}
	return v, err
}

// store copies a file's content into the journal.
func (j *Journal) store(handle int, st *unix.Stat_t, v *Version) error {
	src, err := tree.Read(handle)
	if err != nil {
		return err
	}
	defer src.Close()
	if st.Size <= smallest {
		return j.storePacked(src, st.Size, v)
	}
	if err := j.reserve(min(st.Size, st.Blocks*512), v, func() { // holes take no space
		j.contents++
		v.content = j.contents
	}); err != nil {
		return err
	}
	fd, err := unix.Openat(int(j.content.Fd()), strconv.FormatInt(v.content, 10), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	dst := os.NewFile(uintptr(fd), "content")
	_, err = j.cloner.Copy(dst, src, st.Size)
	if cerr := dst.Close(); err == nil {
		err = cerr
	}
	return err
}

func (j *Journal) storePacked(src *os.File, size int64, v *Version) error {
	buf := make([]byte, size)
	n, err := io.ReadFull(src, buf)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return err
	}
	buf = buf[:n]
	if err := j.reserve(int64(n), v, func() {
		v.pack = j.packed + 1
		j.packed += int64(n)
	}); err != nil {
		return err
	}
	v.sum = crc32.Checksum(buf, castagnoli)
	_, err = j.pack.WriteAt(buf, v.pack-1)
	return err
}

// reserve takes a place and bytes of the budget.
func (j *Journal) reserve(bytes int64, v *Version, place func()) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.stored+j.reserved+bytes > j.meta.Budget {
		return ErrBudget
	}
	j.stored += bytes
	v.stored = bytes
	place()
	return nil
}

// Open opens a kept file's content for reading.
func (j *Journal) Open(v Version) (*os.File, error) {
	f, err := j.openContent(v)
	if err != nil {
		return nil, fmt.Errorf("version %d of %s: %w", v.Number, tree.Show(v.Path), err)
	}
	return f, nil
}

func (j *Journal) openContent(v Version) (*os.File, error) {
	switch {
	case v.content > 0:
		fd, err := unix.Openat(int(j.content.Fd()), strconv.FormatInt(v.content, 10), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), v.Path), nil
	case v.pack == 0 && v.spool == 0:
		return nil, errors.New("its content was not kept")
	}
	from, at := j.pack, v.pack-1
	if v.spool > 0 {
		from, at = j.spool, v.spool-1
	}
	buf := make([]byte, v.stored)
	if _, err := from.ReadAt(buf, at); err != nil && (err != io.EOF || v.stored > 0) {
		return nil, err
	}
	if crc32.Checksum(buf, castagnoli) != v.sum {
		return nil, errors.New("what was kept of it is damaged")
	}
	fd, err := unix.MemfdCreate("version", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), v.Path)
	if _, err = f.Write(buf); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// KeepTree keeps path and, if it is a directory, all below it: for a change of a
// directory's name, or its removal.
func (j *Journal) KeepTree(root *os.File, path string, force bool) error {
	if err := j.drain(); err != nil {
		return err
	}
	return j.keepTree(root, path, force, false)
}

func (j *Journal) keepTree(root *os.File, path string, force, foreign bool) error {
	v, err := j.keepNow(root, path, force, foreign)
	if err != nil {
		return err
	}
	st, ok, err := tree.Lstat(root, path)
	if err != nil || !ok || st.Mode&unix.S_IFMT != unix.S_IFDIR || v.Kind == Absent && !force {
		return err
	}
	return tree.Walk(root, path, func(_ *os.File, at string, _ *unix.Stat_t) error {
		_, err := j.keepNow(root, at, force, foreign)
		return err
	})
}

// leaveBatch is how many lines LeaveAll writes at once.
const leaveBatch = 256

// LeaveAll records what the session leaves at each path that it changed, so that
// Undo can tell it from what others put there later. Call it once nothing of the
// session runs any more.
func (j *Journal) LeaveAll(root *os.File) error {
	if err := j.drain(); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	var batch []*entry
	flush := func() error {
		if err := j.write(false, batch...); err != nil {
			return err
		}
		for _, e := range batch {
			j.left[string(e.Path)] = left{*e.Is, 0}
		}
		batch = batch[:0]
		return nil
	}
	add := func(path string, s State) error {
		if isIndex(path) {
			s.Index = meaning(root, path, s)
		}
		if batch = append(batch, &entry{Type: typeLeft, Path: name(path), Is: &s}); len(batch) < leaveBatch {
			return nil
		}
		return flush()
	}
	for path, versions := range j.byPath {
		s, err := Look(root, path)
		if errors.Is(err, unix.ELOOP) {
			s, err = State{Kind: Absent}, nil // a folder on the way became a link
		}
		if errors.Is(err, unix.EACCES) {
			continue // or is closed to its owner
		}
		if err == nil {
			err = add(path, s)
		}
		if err != nil {
			return err
		}
		if s.Kind != Dir || j.versions[versions[0]].Kind == Dir {
			continue
		}
		err = tree.Walk(root, path, func(_ *os.File, at string, st *unix.Stat_t) error {
			if len(j.byPath[at]) > 0 {
				return nil // its own turn
			}
			return add(at, StateOf(st))
		})
		if errors.Is(err, unix.EACCES) {
			continue // a folder closed to its owner: an undo will not find it as it was left
		}
		if err != nil {
			return err
		}
	}
	if err := flush(); err != nil {
		return err
	}
	return j.log.Sync()
}

// Sync brings all that was kept to the disk.
func (j *Journal) Sync() error { return unix.Syncfs(int(j.log.Fd())) }
