// Package direct reads and writes descriptors that never block, and tells Go's
// scheduler nothing of it.
//
// The scheduler expects of every ordinary system call that it may take long: a
// process that had nothing to do wakes a thread that watches the call, and that
// thread watches on for a millisecond. For a gateway that does little at a time
// this is a tenth of its work. Here the call is made at once, and who has to
// wait waits in the runtime's poller as with package os and net; deadlines and
// Close work as there.
//
// For sockets, pipes and character devices in non-blocking mode: the call then
// takes no longer than its copy. Never for files on disk. Used by the gateway and
// by the controller's end of its pipes. Errors are those of the descriptor; the
// end is io.EOF. One reader and one writer at a time. Other systems than Unix
// have the ordinary calls.
package direct

import "os"

// ErrWait: nothing has arrived yet. It is temporary, which TLS survives
// (crypto/tls: Conn.Read may time out).
var ErrWait error = os.ErrDeadlineExceeded
