package sandboxtest

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// testOverlay: what is written goes to the layer, by whatever way, and where the
// layer is not what the sandbox sees, nothing starts.
func testOverlay(t *testing.T, b sandbox.Backend) {
	host, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ws, layer, other := filepath.Join(host, "w,s:1"), filepath.Join(host, "layer"), filepath.Join(host, "other")
	for _, d := range []string{ws + "/dir", layer + "/upper", layer + "/work", other, ws + "/frozen"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"/a", "/gone", "/dir/b", "/frozen/c"} {
		if err := os.WriteFile(ws+f, []byte("before"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	overlay := vocabulary.Mount{Kind: vocabulary.Overlay, Source: ws, Target: ws, Layer: layer, Why: "test"}
	for _, network := range []sandbox.NetworkKind{sandbox.NetNone, sandbox.NetTAP} {
		spec := Spec(network, overlay, vocabulary.Mount{Kind: vocabulary.BindRO, Source: ws + "/frozen", Target: ws + "/frozen", Why: "test"})
		if network == sandbox.NetTAP && b.Check(spec) != nil {
			t.Log("no TAP here: not proven with one")
			continue
		}
		i := Prepare(t, b, spec)
		for _, c := range []struct {
			script string
			ok     bool
		}{
			{"echo after > a && rm -f gone && echo new > dir/new && mkdir -p d && { test -e d/b || mv dir/b d/b; } && chmod 700 dir && cat a d/b", true},
			{"cd /proc/self/cwd && echo x > dir/y; cd /proc/self/root" + "\"$PWD\"" + " && echo x > dir/z", true},
			{"echo x > frozen/c", false}, {"mv frozen f", false}, {"touch frozen/n", false},
			{"umount .", false}, {"ls " + layer, false}, {"mknod m c 1 3", false},
		} {
			out, code := Output(t, i, "", "sh", "-c", "cd '"+ws+"' && "+c.script)
			if (code == 0) != c.ok {
				t.Errorf("%s: exit %d, %q; want success %v", c.script, code, out, c.ok)
			}
		}
		if err := i.Kill(); err != nil {
			t.Error(err)
		}
	}
	for _, f := range []string{"/a", "/gone", "/dir/b", "/frozen/c"} {
		if text, _ := os.ReadFile(ws + f); string(text) != "before" {
			t.Errorf("the real %s is %q", f, text)
		}
	}
	if list, _ := filepath.Glob(ws + "/*"); len(list) != 4 {
		t.Errorf("the real folder holds %q", list)
	}
	if text, _ := os.ReadFile(layer + "/upper/a"); string(text) != "after\n" {
		t.Errorf("the layer holds %q", text)
	}
	var st unix.Stat_t
	if err := unix.Lstat(layer+"/upper/gone", &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR {
		t.Errorf("what was removed is no mark in the layer: %v %o", err, st.Mode)
	}

	for name, more := range map[string]vocabulary.Mount{
		"exchanged": {Kind: vocabulary.BindRW, Source: other, Target: ws, Why: "test"},
		"mounting":  {Kind: vocabulary.Overlay, Source: other, Target: other, Layer: filepath.Join(host, "nothing"), Why: "test"},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		i, err := b.Prepare(ctx, Spec(sandbox.NetNone, overlay, more))
		cancel()
		if err == nil {
			i.Kill()
			t.Errorf("%s: a sandbox was made", name)
		} else if !strings.Contains(err.Error(), name) && !strings.Contains(err.Error(), "staged workspace") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
