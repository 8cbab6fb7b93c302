package journal

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/workspace/tree"
)

// Looking at a repository changes it: git status writes the index anew when it has
// found out that a file, of another time, is the same. An undo would take that for
// somebody's work, and leave an index that fits to no commit. So of an index there
// is recorded what it means, too.

// maxIndex is some million files.
const maxIndex = 256 << 20

// isIndex reports whether a path is where git has the index of a repository, a
// worktree or a submodule.
func isIndex(p string) bool {
	return path.Base(p) == "index" && slices.Contains(strings.Split(p, "/"), ".git")
}

// meaning is what the file at p means as an index; "" if it is none that is
// understood.
func meaning(root *os.File, p string, s State) string {
	if s.Kind != File || s.Size > maxIndex {
		return ""
	}
	f, _, err := tree.OpenFile(root, p)
	if err != nil {
		return ""
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxIndex))
	if err != nil {
		return ""
	}
	return indexMeaning(data)
}

// IndexNow is what a workspace's own index means; "" if there is none.
func IndexNow(root *os.File) string {
	if s, err := Look(root, ownIndex); err == nil {
		return meaning(root, ownIndex, s)
	}
	return ""
}

// SameIndex reports whether now, at p, is an index of git that means what Bulkhead
// or the session left there last, or, if neither did, what it meant at first.
func (j *Journal) SameIndex(root *os.File, p string, now State) bool {
	if !isIndex(p) {
		return false
	}
	meant := ""
	if left, ok := j.Left(p); ok {
		meant = left.Index
	} else if p == ownIndex {
		meant = j.meta.Index
	}
	return meant != "" && meaning(root, p, now) == meant
}

// ownIndex is that of the workspace's own repository.
const ownIndex = ".git/index"

// indexMeaning digests what an index says about files: names, modes, objects and
// flags, without what it has noted of them on the disk. It is "" for what is not
// surely an index, or is only a part of one.
func indexMeaning(data []byte) string {
	hash := 0
	for _, h := range []int{sha1.Size, sha256.Size} {
		if n := len(data) - h; n >= 12 && bytes.Equal(data[n:], checksum(h, data[:n])) {
			hash, data = h, data[:n]
			break
		}
	}
	if hash == 0 || string(data[:4]) != "DIRC" {
		return ""
	}
	version, count := binary.BigEndian.Uint32(data[4:]), binary.BigEndian.Uint32(data[8:])
	if version < 2 || version > 4 {
		return ""
	}
	sum := sha256.New()
	rest, previous := data[12:], []byte(nil)
	for range count {
		const stat = 40 // ctime, mtime, dev, ino, mode, uid, gid, size
		head := stat + hash + 2
		if len(rest) < head {
			return ""
		}
		flags := binary.BigEndian.Uint16(rest[head-2:])
		if flags&0x4000 != 0 {
			if head += 2; version == 2 || len(rest) < head {
				return ""
			}
		}
		sum.Write(rest[24:28])
		sum.Write(rest[stat:head])
		name := rest[head:]
		if version == 4 { // what to cut off the name before, then the rest of the name
			cut, n := offset(name)
			if n == 0 || cut > len(previous) {
				return ""
			}
			name = name[n:]
			end := bytes.IndexByte(name, 0)
			if end < 0 {
				return ""
			}
			rest = name[end+1:]
			name = append(slices.Clone(previous[:len(previous)-cut]), name[:end]...)
		} else {
			end := bytes.IndexByte(name, 0)
			if end < 0 {
				return ""
			}
			name = name[:end]
			size := (head+end)/8*8 + 8
			if len(rest) < size {
				return ""
			}
			rest = rest[size:]
		}
		previous = name
		sum.Write(name)
		sum.Write([]byte{0})
	}
	for len(rest) > 0 { // extensions
		if len(rest) < 8 {
			return ""
		}
		kind, size := string(rest[:4]), uint64(binary.BigEndian.Uint32(rest[4:]))
		if uint64(len(rest)-8) < size || kind[0] < 'A' || kind[0] > 'Z' { // with a small letter one must be understood
			return ""
		}
		if kind == "REUC" { // conflicts that were resolved
			sum.Write(rest[:8+size])
		}
		rest = rest[8+size:]
	}
	return hex.EncodeToString(sum.Sum(nil))
}

func checksum(size int, data []byte) []byte {
	if size == sha1.Size {
		sum := sha1.Sum(data)
		return sum[:]
	}
	sum := sha256.Sum256(data)
	return sum[:]
}

// offset reads a number as git writes it in version 4; n is its length, or 0.
func offset(b []byte) (v, n int) {
	for n < len(b) && n < 5 {
		c := b[n]
		if n++; n > 1 {
			v++
		}
		v = v<<7 | int(c&0x7f)
		if c&0x80 == 0 {
			return v, n
		}
	}
	return 0, 0
}
