package process

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	standin "github.com/google/go-containerregistry/pkg/registry"
	"github.com/rogpeppe/go-internal/testscript"
)

func init() {
	commands["ocilayout"] = cmdOCILayout
	commands["ociregistry"] = cmdOCIRegistry
}

const (
	ociIndex    = "application/vnd.oci.image.index.v1+json"
	ociManifest = "application/vnd.oci.image.manifest.v1+json"
)

// ocilayout DIR PROGRAM=NAME,… [NAME]: an image for this machine in an OCI layout:
// the static program in /bin by its names, and MARK=image in its environment. A
// further NAME is an empty file, with whatever path.
func cmdOCILayout(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: ocilayout DIR PROGRAM=NAME,… [NAME]")
	}
	program, names, _ := strings.Cut(args[1], "=")
	path, err := exec.LookPath(program)
	if err != nil {
		path = filepath.Join(shared, "bin", program)
	}
	text, err := os.ReadFile(path)
	ts.Check(err)
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for i, n := range strings.Split(names, ",") {
		h := &tar.Header{Name: "bin/" + n, Mode: 0o4755, Size: int64(len(text))}
		if i > 0 {
			h = &tar.Header{Name: "bin/" + n, Typeflag: tar.TypeSymlink, Linkname: strings.Split(names, ",")[0]}
		}
		ts.Check(w.WriteHeader(h))
		if i == 0 {
			_, err := w.Write(text)
			ts.Check(err)
		}
	}
	for _, n := range args[2:] {
		ts.Check(w.WriteHeader(&tar.Header{Name: n, Mode: 0o644}))
	}
	ts.Check(w.Close())

	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755))
	put := func(b []byte, mediaType string) map[string]any {
		d := digest(b)
		ts.Check(os.WriteFile(filepath.Join(dir, "blobs", "sha256", strings.TrimPrefix(d, "sha256:")), b, 0o644))
		return map[string]any{"mediaType": mediaType, "digest": d, "size": len(b)}
	}
	doc := func(v map[string]any) []byte {
		b, err := json.Marshal(v)
		ts.Check(err)
		return b
	}
	config := put(doc(map[string]any{"os": "linux", "architecture": runtime.GOARCH,
		"config": map[string]any{"Env": []string{"MARK=image", "PATH=/bin", "HOME=/nowhere", "BULKHEAD_X=1"}, "User": "4711", "WorkingDir": "/nowhere"},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{digest(layer.Bytes())}}}), "application/vnd.oci.image.config.v1+json")
	manifest := put(doc(map[string]any{"schemaVersion": 2, "mediaType": ociManifest, "config": config,
		"layers": []any{put(layer.Bytes(), "application/vnd.oci.image.layer.v1.tar")}}), ociManifest)
	ts.Check(os.WriteFile(filepath.Join(dir, "index.json"), doc(map[string]any{"schemaVersion": 2, "mediaType": ociIndex, "manifests": []any{manifest}}), 0o644))
}

// ociregistry NAME DIR: a registry on this host's loopback with the image of a
// layout as x/y:z; NAME_ADDR is where.
func cmdOCIRegistry(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: ociregistry NAME DIR")
	}
	s := httptest.NewServer(standin.New(standin.Logger(log.New(io.Discard, "", 0))))
	ts.Defer(s.Close)
	put := func(method, path, kind string, body []byte) {
		r, err := http.NewRequest(method, s.URL+path, bytes.NewReader(body))
		ts.Check(err)
		r.Header.Set("Content-Type", kind)
		answer, err := http.DefaultClient.Do(r)
		ts.Check(err)
		answer.Body.Close()
		if answer.StatusCode/100 != 2 {
			ts.Fatalf("%s: %s", path, answer.Status)
		}
	}
	dir := ts.MkAbs(args[1])
	list, err := os.ReadDir(filepath.Join(dir, "blobs", "sha256"))
	ts.Check(err)
	for _, e := range list {
		b, err := os.ReadFile(filepath.Join(dir, "blobs", "sha256", e.Name()))
		ts.Check(err)
		put("POST", "/v2/x/y/blobs/uploads/?digest=sha256:"+e.Name(), "application/octet-stream", b)
		if bytes.Contains(b[:min(len(b), 4096)], []byte(ociManifest)) {
			put("PUT", "/v2/x/y/manifests/sha256:"+e.Name(), ociManifest, b)
		}
	}
	index, err := os.ReadFile(filepath.Join(dir, "index.json"))
	ts.Check(err)
	put("PUT", "/v2/x/y/manifests/z", ociIndex, index)
	ts.Setenv(args[0]+"_ADDR", strings.TrimPrefix(s.URL, "http://"))
}
