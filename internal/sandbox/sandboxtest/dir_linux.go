package sandboxtest

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// testDir: a private directory holds what the plan puts into it and nothing else,
// wherever it stands, and can't be changed from inside.
func testDir(t *testing.T, b sandbox.Backend) {
	host, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"/read/dir/below", "/read/shown", "/write/dir"} {
		if err := os.MkdirAll(host+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"/read/dir/hidden", "/read/shown/f", "/write/dir/hidden"} {
		if err := os.WriteFile(host+f, []byte("host"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	dirs := []string{"/made/here", "/tmp/dir", host + "/read/dir", host + "/write/dir"}
	mounts := []vocabulary.Mount{
		{Kind: vocabulary.BindRO, Source: host + "/read", Target: host + "/read", Why: "test"},
		{Kind: vocabulary.BindRW, Source: host + "/write", Target: host + "/write", Why: "test"},
	}
	for _, d := range dirs {
		mounts = append(mounts,
			vocabulary.Mount{Kind: vocabulary.Dir, Target: d, Why: "test"},
			vocabulary.Mount{Kind: vocabulary.Data, Target: d + "/data", Data: []byte("data"), Why: "test"},
			vocabulary.Mount{Kind: vocabulary.Symlink, Source: "data", Target: d + "/link", Why: "test"},
			vocabulary.Mount{Kind: vocabulary.BindRO, Source: host + "/read/shown", Target: d + "/deep/shown", Why: "test"},
			vocabulary.Mount{Kind: vocabulary.BindRO, Source: host + "/read/shown/f", Target: d + "/file", Why: "test"})
	}
	i := Prepare(t, b, Spec(sandbox.NetNone, mounts...))
	for _, d := range dirs {
		out, code := Output(t, i, "", "sh", "-c", "cd '"+d+"' && echo $(ls) $(cat data link file deep/shown/f)")
		if want := "data deep file link datadatahosthost\n"; code != 0 || out != want {
			t.Errorf("%s: exit %d, %q, want %q", d, code, out, want)
		}
		for _, script := range []string{"touch new", "mkdir deep/new", "rm link", "ln -sf file link", "chmod 777 .", "echo x >data", "echo x >file", "echo x >deep/shown/f", "mv deep away", "rmdir ."} {
			if out, code := Output(t, i, "", "sh", "-c", "cd '"+d+"' && "+script); code == 0 {
				t.Errorf("%s: %s went through: %q", d, script, out)
			}
		}
	}
	if err := i.Kill(); err != nil {
		t.Error(err)
	}
}
