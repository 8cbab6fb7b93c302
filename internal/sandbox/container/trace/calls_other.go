//go:build !amd64

package trace

var oldOpens []string

// taskCalls make a process or a thread: clone and clone3, by the numbers that all
// newer machines share.
var taskCalls = []int{220, 435}
