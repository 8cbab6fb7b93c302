//go:build !redteam_switches

package switches

// Off is false: nothing can be taken out of this build.
func Off(string) bool { return false }

// Taken lists what is off: nothing.
func Taken() []string { return nil }
