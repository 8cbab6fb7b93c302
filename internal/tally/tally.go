// Package tally adds up what lies in a folder that somebody hostile may be
// changing at the same time. It follows no link, holds a bounded number of
// descriptors and names, and says when it has not seen all.
//
// The controller uses it on the layers of staged workspaces, the guest supervisor
// on memory file systems whose kernel does not count inodes.
package tally

// Sum is what lies in a folder, without the folder itself.
type Sum struct {
	Bytes  int64 // that the files take
	Inodes int64 // files, links and folders
	// Partial: something could not be looked into.
	Partial bool
}
