package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
	"github.com/bulkhead-dev/bulkhead/internal/image/imagetest"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

func TestMain(m *testing.M) {
	childproc.Dispatch()
	os.Exit(m.Run())
}

func gzipped(t testing.TB, b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	w.Close()
	return out.Bytes()
}

// built is an image as files: documents and layers by digest.
type built struct {
	blobs    map[digest][]byte
	index    []byte
	manifest []byte
	config   []byte
	layers   [][]byte
}

func (b *built) blob(data []byte) descriptor {
	d := digestOf(data)
	b.blobs[d] = data
	return descriptor{Digest: d, Size: int64(len(data))}
}

func build(t testing.TB, change func(*configuration, *manifest), layers ...[]byte) *built {
	b := &built{blobs: map[digest][]byte{}, layers: layers}
	c := configuration{OS: here.OS, Architecture: here.Architecture}
	c.Config.Env = []string{"PATH=/bin", "HOME=/nowhere", "MARK=image"}
	m := manifest{SchemaVersion: 2, MediaType: manifestTypes[0]}
	for _, l := range layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, digestOf(l))
		d := b.blob(gzipped(t, l))
		d.MediaType = layerTypes[1]
		m.Layers = append(m.Layers, d)
	}
	if change != nil {
		change(&c, &m)
	}
	b.config, _ = json.Marshal(c)
	if m.Config.Digest == "" {
		m.Config = b.blob(b.config)
	}
	m.Config.MediaType = "application/vnd.oci.image.config.v1+json"
	b.manifest, _ = json.Marshal(m)
	d := b.blob(b.manifest)
	d.MediaType = manifestTypes[0]
	d.Platform = &here
	b.index, _ = json.Marshal(index{indexTypes[0], []descriptor{d}})
	return b
}

// layout writes an OCI layout.
func (b *built) layout(t testing.TB) Reference {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		t.Fatal(err)
	}
	for d, data := range b.blobs {
		if err := os.WriteFile(filepath.Join(dir, "blobs", "sha256", d.hex()), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "index.json"), b.index, 0o644); err != nil {
		t.Fatal(err)
	}
	return Reference{Layout, dir}
}

// archive is what docker save writes.
func (b *built) archive(t testing.TB) []byte {
	name := digestOf(b.config).hex() + ".json"
	entries := []imagetest.Entry{{Name: name, Text: string(b.config)}}
	var names []string
	for _, l := range b.layers {
		n := digestOf(l).hex() + "/layer.tar"
		if slices.Contains(names, n) {
			other := "again/layer.tar"
			entries = append(entries, imagetest.Entry{Name: other, Kind: tar.TypeSymlink, Text: "../" + n})
			n = other
		} else {
			entries = append(entries, imagetest.Entry{Name: n, Text: string(l)})
		}
		names = append(names, n)
	}
	list, _ := json.Marshal([]map[string]any{{"Config": name, "RepoTags": []string{"x:y"}, "Layers": names}})
	return imagetest.Tar(t, append(entries, imagetest.Entry{Name: "manifest.json", Text: string(list)})...)
}

func store(t testing.TB) *Store {
	s, err := Open(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// tree is what a folder holds: modes, links and texts by name.
func tree(t testing.TB, root string) map[string]string {
	out := map[string]string{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		name, _ := filepath.Rel(root, p)
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			out[name+"/"] = info.Mode().Perm().String()
		case d.Type() == fs.ModeSymlink:
			to, _ := os.Readlink(p)
			out[name] = "-> " + to
		default:
			text, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			out[name] = info.Mode().String() + " " + string(text)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// nothingLeft is for a store in which no image came into being.
func nothingLeft(t testing.TB, s *Store) {
	for _, d := range []string{"roots", "names", "begun"} {
		if list, _ := os.ReadDir(s.at(d)); len(list) > 0 {
			t.Errorf("%s holds %v", d, list)
		}
	}
}

var ordinary = []imagetest.Entry{
	{Name: "bin/", Mode: 0o755}, {Name: "bin/tool", Text: "tool", Mode: 0o6755}, {Name: "etc/", Mode: 0o500}, {Name: "./etc/secret", Text: "s", Mode: 0o4000},
	{Name: "lib", Kind: tar.TypeSymlink, Text: "usr/lib"}, {Name: "usr/lib/"}, {Name: "/lib/a", Text: "a"},
	{Name: "bin/hard", Kind: tar.TypeLink, Text: "/bin/tool"}, {Name: "abs", Kind: tar.TypeSymlink, Text: "/etc/secret"},
	{Name: "up", Kind: tar.TypeSymlink, Text: "../../../etc"}, {Name: "dev/null", Kind: tar.TypeChar}, {Name: "gone/x/y", Text: "y"}, {Name: "opaque/old", Text: "o"},
	{Name: "opaque/deep/old", Text: "o"}, {Name: "kept", Text: "k"}, {Name: "wasdir/x", Text: "x"}, {Name: "wasfile", Text: "f"},
}

var second = []imagetest.Entry{
	{Name: ".wh.gone"}, {Name: "opaque/new", Text: "n"}, {Name: "opaque/deep/new", Text: "n"}, {Name: "opaque/.wh..wh..opq"}, {Name: ".wh..wh.plnk"},
	{Name: ".wh.notthere"}, {Name: "nowhere/.wh.x"}, {Name: "wasdir", Text: "file"}, {Name: "wasfile/", Mode: 0o755}, {Name: "wasfile/in", Text: "in"},
	{Name: "kept", Text: "new"}, {Name: ".wh.kept"}, {Name: "bin/tool", Text: "tool2", Mode: 0o755},
}

// TestUnpack: layers, whiteouts, opaque folders and links make the tree that they
// describe, owned by who unpacked it and without set-user-ID, from each source.
func TestUnpack(t *testing.T) {
	b := build(t, nil, imagetest.Tar(t, ordinary...), imagetest.Tar(t, second...), imagetest.Tar(t, second...))
	file := filepath.Join(t.TempDir(), "saved.tar")
	if err := os.WriteFile(file, b.archive(t), 0o644); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"bin/": "-rwxr-xr-x", "bin/tool": "-rwxr-xr-x tool2", "bin/hard": "-rwxr-xr-x tool", "etc/": "-rwx------", "etc/secret": "-rw------- s",
		"lib": "-> usr/lib", "usr/": "-rwxr-xr-x", "usr/lib/": "-rwxr--r--", "usr/lib/a": "-rw-r--r-- a", "abs": "-> /etc/secret", "up": "-> ../../../etc",
		"opaque/": "-rwxr-xr-x", "opaque/new": "-rw-r--r-- n", "opaque/deep/": "-rwxr-xr-x", "opaque/deep/new": "-rw-r--r-- n", "kept": "-rw-r--r-- new",
		"wasdir": "-rw-r--r-- file", "wasfile/": "-rwxr-xr-x", "wasfile/in": "-rw-r--r-- in",
	}
	for _, ref := range []Reference{b.layout(t), {Archive, file}} {
		s := store(t)
		var last, all int64
		i, err := s.Pull(context.Background(), ref, func(h, a int64) { last, all = h, a })
		if err != nil {
			t.Fatalf("%s: %v", ref, err)
		}
		if diff := cmp.Diff(want, tree(t, i.Root)); diff != "" {
			t.Errorf("%s: %s", ref, diff)
		}
		if last != all || all == 0 {
			t.Errorf("progress ended at %d of %d", last, all)
		}
		st, err := os.Stat(filepath.Join(i.Root, "usr/lib/a"))
		if err != nil || st.ModTime().Unix() != 1e9 || int(st.Sys().(*syscall.Stat_t).Uid) != os.Geteuid() {
			t.Errorf("%v %v", st, err)
		}
		if i.ID != string(digestOf(b.config)) || !slices.Contains(i.Config.Env, "MARK=image") {
			t.Errorf("%+v", i)
		}
		again, err := s.Pull(context.Background(), ref, func(int64, int64) { t.Error("it came once more") })
		if err != nil || again.Root != i.Root {
			t.Errorf("again: %+v %v", again, err)
		}
		again.Close()

		list, err := s.List()
		if err != nil || len(list) != 1 || !list[0].InUse || list[0].Names[0].Name != ref.String() || list[0].Bytes == 0 {
			t.Errorf("%+v %v", list, err)
		}
		if _, err := s.Remove(ref.String()); !refusedWith(err, "in use") {
			t.Errorf("remove: %v", err)
		}
		i.Close()
		if _, err := s.Remove(i.ID[:19]); err != nil {
			t.Error(err)
		}
		nothingLeft(t, s)
		if _, err := s.Remove(i.ID); !refusedWith(err, "there is no image") {
			t.Errorf("removed twice: %v", err)
		}
	}
}

func refusedWith(err error, text string) bool {
	var e *vocabulary.ExitError
	return errors.As(err, &e) && e.Code == vocabulary.ExitRefused && strings.Contains(err.Error(), text)
}

// TestHostile: what an image must not do is refused with its reason, and nothing
// stays.
func TestHostile(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("before"), 0o644); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", 300)
	deep := strings.Repeat("d/", 210)
	many := make([]imagetest.Entry, 0, 600)
	for n := range 600 {
		many = append(many, imagetest.Entry{Name: "f" + string(rune('a'+n%26)) + strings.Repeat("g", n%7) + string(rune('a'+n/26))})
	}
	loop := []imagetest.Entry{{Name: "a", Kind: tar.TypeSymlink, Text: "b"}, {Name: "b", Kind: tar.TypeSymlink, Text: "a"}, {Name: "a/x"}}
	for name, c := range map[string]struct {
		layer []imagetest.Entry
		why   string
	}{
		"dots":               {[]imagetest.Entry{{Name: "../x", Text: "x"}}, "leads upwards"},
		"dots in it":         {[]imagetest.Entry{{Name: "a/../../x", Text: "x"}}, "leads upwards"},
		"absolute link":      {[]imagetest.Entry{{Name: "a", Kind: tar.TypeSymlink, Text: filepath.Dir(outside)}, {Name: "a/outside", Text: "x"}}, "behind the link"},
		"link upwards":       {[]imagetest.Entry{{Name: "d/a", Kind: tar.TypeSymlink, Text: "../.."}, {Name: "d/a/x", Text: "x"}}, "leads out"},
		"link through links": {[]imagetest.Entry{{Name: "a", Kind: tar.TypeSymlink, Text: "."}, {Name: "b", Kind: tar.TypeSymlink, Text: "a/a/.."}, {Name: "b/x"}}, "leads out"},
		"links in a loop":    {loop, "too many links"},
		"hard link out":      {[]imagetest.Entry{{Name: "a", Kind: tar.TypeLink, Text: "../../etc/passwd"}}, "leads upwards"},
		"hard link by link":  {[]imagetest.Entry{{Name: "l", Kind: tar.TypeSymlink, Text: "/etc"}, {Name: "a", Kind: tar.TypeLink, Text: "l/passwd"}}, "behind the link"},
		"hard link to link":  {[]imagetest.Entry{{Name: "l", Kind: tar.TypeSymlink, Text: outside}, {Name: "a", Kind: tar.TypeLink, Text: "l"}}, "not a file"},
		"hard link to none":  {[]imagetest.Entry{{Name: "a", Kind: tar.TypeLink, Text: "none"}}, "no such file"},
		"hard link to root":  {[]imagetest.Entry{{Name: "a", Kind: tar.TypeLink, Text: "/"}}, "the root"},
		"device":             {[]imagetest.Entry{{Name: "sda", Kind: tar.TypeBlock}}, "a device"},
		"pipe":               {[]imagetest.Entry{{Name: "etc/pipe", Kind: tar.TypeFifo}}, "a device"},
		"root a file":        {[]imagetest.Entry{{Name: "./", Kind: tar.TypeSymlink, Text: "/"}}, "replace the root"},
		"long name":          {[]imagetest.Entry{{Name: long}}, "300 bytes"},
		"long path":          {[]imagetest.Entry{{Name: strings.Repeat("xxxxxxxxx/", 500)}}, "4000 are the most"},
		"deep":               {[]imagetest.Entry{{Name: deep}}, "deep"},
		"deep by links":      {[]imagetest.Entry{{Name: deep[:300]}, {Name: "l", Kind: tar.TypeSymlink, Text: deep[:300]}, {Name: "l/" + deep[:300]}}, "deep"},
		"empty link":         {[]imagetest.Entry{{Name: "l", Kind: tar.TypeSymlink, Text: ""}}, "link to nothing"},
		"many":               {many, "more than 500 files"},
		"large":              {[]imagetest.Entry{{Name: "a", Text: strings.Repeat("\x00", 200_000)}, {Name: "b", Text: strings.Repeat("\x00", 200_000)}}, "larger than"},
		"mark of nothing":    {[]imagetest.Entry{{Name: ".wh."}}, "removes nothing"},
		"mark upwards":       {[]imagetest.Entry{{Name: "a/.wh..."}}, ""},
		"in a mark":          {[]imagetest.Entry{{Name: ".wh.a/b"}}, "in a mark"},
		"file as folder":     {[]imagetest.Entry{{Name: "a", Text: "x"}, {Name: "a/b"}}, "not a folder"},
		"unknown kind":       {[]imagetest.Entry{{Name: "a", Kind: 'Z'}}, "not known"},
	} {
		t.Run(name, func(t *testing.T) {
			s := store(t)
			s.Limits.Entries, s.Limits.Bytes = 500, 300_000
			i, err := s.Pull(context.Background(), build(t, nil, imagetest.Tar(t, c.layer...)).layout(t), nil)
			if c.why == "" {
				if err != nil {
					t.Fatal(err)
				}
				i.Close()
				return
			}
			if !refusedWith(err, c.why) || !refusedWith(err, "layer 1 of 1") {
				t.Errorf("%v; want: %s", err, c.why)
			}
			nothingLeft(t, s)
		})
	}
	if text, _ := os.ReadFile(outside); string(text) != "before" {
		t.Errorf("outside is %q", text)
	}
}

// TestLies: digests, sizes, kinds and machines that are not what was announced.
func TestLies(t *testing.T) {
	plain := imagetest.Tar(t, imagetest.Entry{Name: "a", Text: "a"})
	bomb := gzipped(t, append(imagetest.Tar(t, imagetest.Entry{Name: "a", Text: "a"}), make([]byte, 64<<20)...))
	for name, c := range map[string]struct {
		change func(*configuration, *manifest)
		after  func(*built)
		why    string
	}{
		"other machine":    {func(c *configuration, _ *manifest) { c.Architecture = "vax" }, nil, "linux/vax"},
		"other system":     {func(c *configuration, _ *manifest) { c.OS = "windows" }, nil, "windows/"},
		"layer exchanged":  {nil, func(b *built) { b.swap(t, gzipped(t, plain), otherSystem(gzipped(t, plain))) }, "was asked for"},
		"layer longer":     {nil, func(b *built) { b.swap(t, gzipped(t, plain), append(gzipped(t, plain), 0)) }, "longer"},
		"layer shorter":    {nil, func(b *built) { b.swap(t, gzipped(t, plain), gzipped(t, plain)[:20]) }, "before the"},
		"layer missing":    {nil, func(b *built) { delete(b.blobs, digestOf(gzipped(t, plain))) }, "no such file"},
		"config exchanged": {nil, func(b *built) { b.swap(t, b.config, bytes.Replace(b.config, []byte("image"), []byte("other"), 1)) }, "was asked for"},
		"other diff":       {func(c *configuration, _ *manifest) { c.RootFS.DiffIDs[0] = digestOf(nil) }, nil, "was announced"},
		"too few diffs":    {func(c *configuration, _ *manifest) { c.RootFS.DiffIDs = nil }, nil, "tells of 0"},
		"no digest":        {func(_ *configuration, m *manifest) { m.Layers[0].Digest = "sha256:../../../../etc/passwd" }, nil, "no sha256 digest"},
		"size below zero":  {func(_ *configuration, m *manifest) { m.Layers[0].Size = -1 }, nil, "larger than"},
		"size beyond":      {func(_ *configuration, m *manifest) { m.Layers[0].Size = 1 << 62 }, nil, "larger than"},
		"foreign layer": {func(_ *configuration, m *manifest) {
			m.Layers[0].MediaType = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
		}, nil, "not known"},
		"encrypted layer": {func(_ *configuration, m *manifest) { m.Layers[0].MediaType += "+encrypted" }, nil, "not known"},
		"schema 1":        {func(_ *configuration, m *manifest) { m.SchemaVersion = 1 }, nil, "schema 1"},
		"too many layers": {func(_ *configuration, m *manifest) { m.Layers = slices.Repeat(m.Layers, 300) }, nil, "300 layers"},
		"environment":     {func(c *configuration, _ *manifest) { c.Config.Env = []string{"noequals"} }, nil, "its environment has"},
		"index too large": {nil, func(b *built) { b.index = append(b.index, bytes.Repeat([]byte(" "), maxDocument)...) }, "more than"},
		"index no JSON":   {nil, func(b *built) { b.index = []byte("\x1b[31m{") }, "index"},
		"index empty":     {nil, func(b *built) { b.index = []byte(`{"manifests":[]}`) }, "no image"},
		"index in itself": {nil, func(b *built) { b.nest(t, 5) }, "in one another"},
		"second document": {nil, func(b *built) { b.index = append(b.index, b.index...) }, "more than one"},
		"uncompressed bomb": {func(c *configuration, m *manifest) {
			c.RootFS.DiffIDs[0], m.Layers[0] = digestOf(nil), descriptor{layerTypes[1], digestOf(bomb), int64(len(bomb)), nil}
		}, func(b *built) { b.blobs[digestOf(bomb)] = bomb }, "larger, uncompressed"},
		"no gzip": {func(_ *configuration, m *manifest) {
			m.Layers[0] = descriptor{layerTypes[1], digestOf([]byte("\x1f\x8bx")), 3, nil}
		}, func(b *built) { b.blobs[digestOf([]byte("\x1f\x8bx"))] = []byte("\x1f\x8bx") }, "layer 1 of 1"},
		"no tar": {func(c *configuration, m *manifest) {
			c.RootFS.DiffIDs[0] = digestOf([]byte("hello"))
			m.Layers[0] = descriptor{layerTypes[0], digestOf([]byte("hello")), 5, nil}
		}, func(b *built) { b.blobs[digestOf([]byte("hello"))] = []byte("hello") }, "tar file"},
	} {
		t.Run(name, func(t *testing.T) {
			b := build(t, c.change, plain)
			if c.after != nil {
				c.after(b)
			}
			s := store(t)
			s.Limits.Bytes, s.Limits.Entries = 1<<20, 100
			_, err := s.Pull(context.Background(), b.layout(t), nil)
			if !refusedWith(err, c.why) {
				t.Errorf("%v; want: %s", err, c.why)
			}
			if err != nil && strings.ContainsRune(err.Error(), 0x1b) {
				t.Errorf("it reaches the terminal: %q", err)
			}
			nothingLeft(t, s)
		})
	}
}

// otherSystem is the same content in other bytes.
func otherSystem(zipped []byte) []byte {
	out := slices.Clone(zipped)
	out[9]--
	return out
}

// swap exchanges a blob and keeps its digest.
func (b *built) swap(t testing.TB, is, other []byte) {
	if _, ok := b.blobs[digestOf(is)]; !ok {
		t.Fatal("no such blob")
	}
	b.blobs[digestOf(is)] = other
}

// nest puts the index into indexes.
func (b *built) nest(t testing.TB, times int) {
	for range times {
		d := b.blob(b.index)
		d.MediaType = indexTypes[0]
		b.index, _ = json.Marshal(index{indexTypes[0], []descriptor{d}})
	}
}

// TestZstd: the other compression, and none.
func TestZstd(t *testing.T) {
	plain := imagetest.Tar(t, imagetest.Entry{Name: "a", Text: "a"})
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	for kind, data := range map[string][]byte{layerTypes[2]: enc.EncodeAll(plain, nil), layerTypes[0]: plain} {
		b := build(t, func(_ *configuration, m *manifest) {
			m.Layers[0] = descriptor{kind, digestOf(data), int64(len(data)), nil}
		}, plain)
		b.blobs[digestOf(data)] = data
		i, err := store(t).Pull(context.Background(), b.layout(t), nil)
		if err != nil {
			t.Fatal(err)
		}
		if tree(t, i.Root)["a"] == "" {
			t.Errorf("%s: a is missing", kind)
		}
		i.Close()
	}
}

// TestTogether: many at once make one root.
func TestTogether(t *testing.T) {
	s := store(t)
	ref := build(t, nil, imagetest.Tar(t, ordinary...)).layout(t)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			own, err := Open(s.dir)
			if err != nil {
				t.Error(err)
				return
			}
			i, err := own.Pull(context.Background(), ref, nil)
			if err != nil {
				t.Error(err)
				return
			}
			if tree(t, i.Root)["kept"] == "" {
				t.Error("not whole")
			}
			i.Close()
			if _, err := own.List(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if list, err := s.List(); err != nil || len(list) != 1 || list[0].InUse {
		t.Errorf("%+v %v", list, err)
	}
	if list, _ := os.ReadDir(s.at("begun")); len(list) > 0 {
		t.Errorf("begun: %v", list)
	}
}

// TestSweep: what was begun and not ended goes with the next Open, unless somebody
// is at it.
func TestSweep(t *testing.T) {
	s := store(t)
	dir, end, err := s.begin()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "rootfs/x"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(s.dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "rootfs/x")); err != nil {
		t.Errorf("a folder in use was swept: %v", err)
	}
	// As after kill -9: the lock is free, everything is there.
	if err := os.Rename(dir, dir+"x"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"y.lock", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir+"y/rootfs", 0o755); err != nil {
		t.Fatal(err)
	}
	end()
	if _, err := Open(s.dir); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, s)
}

func init() {
	childproc.Register("pullprobe", func() int {
		s, err := Open(os.Args[1])
		if err != nil {
			return 1
		}
		_, err = s.Pull(context.Background(), Reference{Registry, os.Args[2]}, nil)
		fmt.Println(err)
		return 2
	})
}

// TestKilled: of a pull that was killed in the middle nothing counts, its unpacker
// ends, and the next that opens the store sweeps; then the image can be pulled.
func TestKilled(t *testing.T) {
	b := build(t, nil, imagetest.Tar(t, imagetest.Entry{Name: "first", Text: "f"}, imagetest.Entry{Name: "big", Text: randomText(1 << 20)}))
	for round := range 4 {
		s := store(t)
		half := make(chan struct{})
		host := serving(t, b, func(w http.ResponseWriter, r *http.Request) bool {
			if round == 3 || !isBlob(r, b) {
				return false
			}
			layer := gzipped(t, b.layers[0])
			w.Header().Set("Content-Length", fmt.Sprint(len(layer)))
			w.Write(layer[:len(layer)*round/3])
			w.(http.Flusher).Flush()
			close(half)
			<-r.Context().Done()
			return true
		})
		if round == 3 {
			i, err := s.Pull(context.Background(), Reference{Registry, host + "/x/y:z"}, nil)
			if err != nil {
				t.Fatal(err)
			}
			i.Close()
			continue
		}
		cmd := &exec.Cmd{Path: childproc.Self(), Args: []string{childproc.Argv0("pullprobe"), s.dir, host + "/x/y:z"}, Env: []string{"HOME=" + t.TempDir()}}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-half:
		case <-time.After(20 * time.Second):
			t.Error("it did not come so far")
		}
		time.Sleep(time.Duration(round) * 50 * time.Millisecond)
		cmd.Process.Kill()
		cmd.Wait()
		if list, _ := os.ReadDir(s.at("begun")); len(list) == 0 {
			t.Error("it was killed before or after its work")
		}
		for range 200 { // its unpacker may take a moment to notice
			if _, err := Open(s.dir); err != nil {
				t.Fatal(err)
			}
			if list, _ := os.ReadDir(s.at("begun")); len(list) == 0 {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		nothingLeft(t, s)
	}
}

func randomText(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return string(b)
}

// TestCancelled: nothing stays of what was given up, and it ends at once.
func TestCancelled(t *testing.T) {
	s := store(t)
	ref := build(t, nil, imagetest.Tar(t, imagetest.Entry{Name: "big", Text: strings.Repeat("0123456789abcdef", 1<<20)})).layout(t)
	ctx, cancel := context.WithCancel(context.Background())
	begun := time.Now()
	_, err := s.Pull(ctx, ref, func(int64, int64) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if since := time.Since(begun); since > 10*time.Second {
		t.Errorf("it took %v", since)
	}
	nothingLeft(t, s)
}

// TestUnusable: a cache that others can write to, or that can't be written to.
func TestUnusable(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "images")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); !refusedWith(err, "others may write") {
		t.Errorf("%v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(filepath.Join(file, "images")); !refusedWith(err, "XDG_CACHE_HOME") {
		t.Errorf("%v", err)
	}
}

// TestArchives: what is no file of docker save says so.
func TestArchives(t *testing.T) {
	good := build(t, nil, imagetest.Tar(t, ordinary...)).archive(t)
	for name, c := range map[string]struct {
		data []byte
		why  string
	}{
		"compressed": {gzipped(t, good), "uncompress it first"},
		"empty":      {nil, "no manifest.json"},
		"cut":        {good[:len(good)-3000], ""},
		"two":        {imagetest.Tar(t, imagetest.Entry{Name: "manifest.json", Text: "[{},{}]"}), "holds 2 images"},
		"dots":       {imagetest.Tar(t, imagetest.Entry{Name: "manifest.json", Text: `[{"Config":"../../etc/passwd"}]`}), "has no ../../etc/passwd"},
		"other name": {bytes.ReplaceAll(good, []byte("MARK=image"), []byte("MARK=imagE")), "its configuration is called"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "a.tar")
			if err := os.WriteFile(file, c.data, 0o644); err != nil {
				t.Fatal(err)
			}
			s := store(t)
			if _, err := s.Pull(context.Background(), Reference{Archive, file}, nil); !refusedWith(err, c.why) {
				t.Errorf("%v; want: %s", err, c.why)
			}
			nothingLeft(t, s)
		})
	}
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := store(t).Pull(context.Background(), Reference{Archive, pipe}, nil); !refusedWith(err, "not a regular file") {
		t.Errorf("%v", err)
	}
}
