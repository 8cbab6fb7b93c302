package intercept

import (
	"io"
	"net"
	"sync"
)

// Splice copies an opaque flow in both directions until both have ended, with
// half-closed connections in between, and closes both ends.
func Splice(inside, outside net.Conn) (out, in int64) {
	defer inside.Close()
	defer outside.Close()
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		in = oneWay(inside, outside)
	}()
	out = oneWay(outside, inside)
	wg.Wait()
	return out, in
}

func oneWay(dst, src net.Conn) int64 {
	buf := make([]byte, 32<<10)
	// The wrappers hide ReadFrom and WriteTo: splice(2) is not for us.
	n, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, buf)
	if half, ok := dst.(interface{ CloseWrite() error }); ok && err == nil {
		half.CloseWrite()
	} else {
		dst.Close()
		src.Close()
	}
	return n
}
