// Package door is for listening where the kernel that listens is not the host's:
// its sockets can't be handed out, so that each connection is.
//
// A door is a pair of Unix sockets of type SOCK_SEQPACKET. Each message on it is
// one byte and carries, by SCM_RIGHTS, one connected Unix stream socket: a
// connection that was accepted inside, which the guest supervisor copies. It has
// no name: only the controller can knock. The end of one side is the end of the
// listener. The controller has the outer side, the gateway the inner one.
package door

const message = 1 // bytes
