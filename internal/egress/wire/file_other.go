//go:build !unix

package wire

import (
	"errors"
	"net"
	"os"
)

type fileReader struct{ conn *net.UnixConn }

func (r *fileReader) Read(p []byte) (int, error) { return r.conn.Read(p) }
func (r *fileReader) take() *os.File             { return nil }

func writeWithFile(*net.UnixConn, []byte, *os.File) error {
	return errors.New("wire: descriptors travel on Unix only")
}
