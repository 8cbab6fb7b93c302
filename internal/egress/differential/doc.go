// Package differential holds tests only: what the gateway decides about, what it
// sends and what foreign servers read must be the same requests.
//
// In: bytes that hostile code inside could send, over HTTP/1.1 or as HTTP/2
// frames. They go to the stages that a flow passes (intercept, httpauthz, dial),
// wired as the gateway wires them, and on to two servers at once: nginx and
// Node. Every byte on the way there is also read by net/http or x/net/http2.
// Each of the three readers writes down method, target, host, headers, length and
// hash of the body and on which connection it read them; these must be the
// requests that the gateway recorded as allowed, in the same order, none more,
// and no path may be read as one that no grant covers.
//
// A reader may refuse what we send (Node and nginx close the connection then);
// it may not read something else.
package differential
