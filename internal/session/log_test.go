package session

import (
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// AUD-01: a record that the sandbox can write is none.
func TestWritableInside(t *testing.T) {
	mounts := []vocabulary.Mount{
		{Kind: vocabulary.BindRO, Source: "/usr", Target: "/usr"},
		{Kind: vocabulary.Tmpfs, Target: "/home/u"},
		{Kind: vocabulary.BindRW, Source: "/home/u/ws", Target: "/home/u/ws"},
		{Kind: vocabulary.BindRO, Source: "/home/u/ws/frozen", Target: "/home/u/ws/frozen"},
		{Kind: vocabulary.MaskDir, Target: "/home/u/ws/state"},
		{Kind: vocabulary.BindRW, Source: "/data/out", Target: "/mnt/out"},
	}
	for path, want := range map[string]bool{
		"/home/u/ws/ev.jsonl":        true,
		"/home/u/ws/deep/ev.jsonl":   true,
		"/data/out/ev.jsonl":         true,
		"/home/u/ws/frozen/ev.jsonl": false,
		"/home/u/ws/state/ev.jsonl":  false,
		"/home/u/ws2/ev.jsonl":       false,
		"/home/u/ev.jsonl":           false, // the sandbox's home is another one
		"/mnt/out/ev.jsonl":          false, // the target's name, outside
		"/tmp/ev.jsonl":              false,
	} {
		if got := writableInside(path, mounts); got != want {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
	}
}
