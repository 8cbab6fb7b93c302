//go:build !unix

package direct

import "io"

// File is one descriptor.
type File struct{ io.ReadWriter }

// New prepares c; nil if it cannot be read and written.
func New(c any) *File {
	if rw, ok := c.(io.ReadWriter); ok {
		return &File{rw}
	}
	return nil
}

// ReadNow never returns anything.
func (*File) ReadNow([]byte) (int, error) { return 0, ErrWait }
