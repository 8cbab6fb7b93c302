// Package sandboxtest is the conformance suite that every isolation backend
// runs: what works inside, what must not, and what is left afterwards. It is
// imported by tests only.
//
// A backend's test calls Main from TestMain and Run from a test inside
// EachUser, so that everything is proven as root and as an ordinary user. The
// test binary itself goes into the sandbox and, as childproc "probe", looks
// around or attacks; its findings come out as JSON.
package sandboxtest
