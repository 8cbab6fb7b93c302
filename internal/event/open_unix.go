//go:build unix

package event

import "syscall"

// noFollow keeps a planted link from choosing the file, and a planted pipe from
// holding the open until somebody reads it.
const noFollow = syscall.O_NOFOLLOW | syscall.O_NONBLOCK
