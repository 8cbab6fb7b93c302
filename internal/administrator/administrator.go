// Package administrator reads the policy of this machine's administrator, which
// limits the policies of all users.
//
// It runs in the controller and in the command line, with the user's privileges.
// In: a path, which is always Path outside of tests. Out: the file's bytes, or
// nil if there is no such file. Only a file that root alone can have written is
// believed: it and every folder above it belong to root and can be written by
// nobody else, none of them is a link, the file is a regular one of at most
// MaxSize bytes. All of that is read from the handles that lead to the bytes.
// Whatever else stands there is an error (exit code 10), also what this user may
// not read: a limit that can't be read is not one that is missing.
//
// Known holes: whoever administers the machine is believed; a user who runs
// programs without Bulkhead is not limited by it.
package administrator

// Path is where the policy stands. There is no way to name another: not by a
// flag, not by a variable.
const Path = "/etc/bulkhead/policy.yaml"

// MaxSize bounds the file, in bytes; it is far above what a person can review.
const MaxSize = 1 << 20
