//go:build !unix

package gather

import "syscall"

func readNow(syscall.RawConn, []byte) (int, error) { return 0, ErrWait }
