package tally

import (
	"io"
	"os"
	"syscall"
)

// maxDepth bounds the descriptors that are open at a time.
const maxDepth = 200

// Of adds up what lies in root, up to most inodes; 0: all.
func Of(root *os.Root, most int64) Sum {
	w := walk{most: most, linked: map[uint64]bool{}}
	w.add(root, 0)
	return w.Sum
}

type walk struct {
	Sum
	most   int64
	linked map[uint64]bool // counted files with several names
}

func (w *walk) full() bool { return w.most > 0 && w.Inodes >= w.most }

func (w *walk) add(root *os.Root, depth int) {
	dir, err := root.Open(".")
	if err != nil || depth > maxDepth {
		w.Partial = true
		return
	}
	defer dir.Close()
	for !w.full() {
		entries, err := dir.ReadDir(256)
		for _, e := range entries {
			if w.full() {
				return
			}
			info, err := root.Lstat(e.Name())
			if err != nil {
				w.Partial = w.Partial || !os.IsNotExist(err)
				continue
			}
			if !w.one(info) || !info.IsDir() {
				continue
			}
			below, err := root.OpenRoot(e.Name())
			if err != nil {
				w.Partial = w.Partial || !os.IsNotExist(err)
				continue
			}
			w.add(below, depth+1)
			below.Close()
		}
		if err != nil {
			w.Partial = w.Partial || err != io.EOF
			return
		}
	}
}

// one counts a file or folder, unless that was done under another name.
func (w *walk) one(info os.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		w.Partial = true
		return false
	}
	if st.Nlink > 1 && !info.IsDir() {
		if w.linked[st.Ino] {
			return false
		}
		w.linked[st.Ino] = true
	}
	w.Inodes++
	w.Bytes += st.Blocks * 512
	return true
}
