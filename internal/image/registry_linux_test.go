package image

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	standin "github.com/google/go-containerregistry/pkg/registry"

	"github.com/bulkhead-dev/bulkhead/internal/image/imagetest"
)

// serving is a registry on this host's loopback that holds an image by the name
// x/y:z. lie, if not nil, may answer first.
func serving(t testing.TB, b *built, lie func(http.ResponseWriter, *http.Request) bool) (host string) {
	good := standin.New(standin.Logger(log.New(io.Discard, "", 0)))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if lie != nil && r.Header.Get("X-Fill") == "" && lie(w, r) {
			return
		}
		good.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	put := func(method, path, kind string, body []byte) {
		r, err := http.NewRequest(method, s.URL+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", kind)
		r.Header.Set("X-Fill", "1")
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode/100 != 2 {
			t.Fatalf("%s: %s", path, answer.Status)
		}
	}
	for d, data := range b.blobs {
		put("POST", "/v2/x/y/blobs/uploads/?digest="+string(d), "application/octet-stream", data)
	}
	put("PUT", "/v2/x/y/manifests/"+string(digestOf(b.manifest)), manifestTypes[0], b.manifest)
	put("PUT", "/v2/x/y/manifests/z", indexTypes[0], b.index)
	return strings.TrimPrefix(s.URL, "http://")
}

func isBlob(r *http.Request, b *built) bool {
	return strings.HasSuffix(r.URL.Path, string(digestOf(gzipped(new(testing.T), b.layers[0]))))
}

// TestRegistry: an image by name and by digest, and from the cache without asking
// anybody.
func TestRegistry(t *testing.T) {
	b := build(t, nil, imagetest.Tar(t, ordinary...))
	var asked atomic.Int32
	host := serving(t, b, func(http.ResponseWriter, *http.Request) bool { asked.Add(1); return false })
	s := store(t)
	ref := Reference{Registry, host + "/x/y:z"}
	if i, err := s.Find(ref); i != nil || err != nil {
		t.Fatalf("%v %v", i, err)
	}
	i, err := s.Pull(context.Background(), ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	i.Close()
	if tree(t, i.Root)["kept"] == "" {
		t.Error("not whole")
	}
	was := asked.Load()
	again, err := s.Find(ref)
	if err != nil || again == nil || again.Root != i.Root || asked.Load() != was {
		t.Errorf("%+v %v, asked %d times, then %d", again, err, was, asked.Load())
	}
	again.Close()
	byDigest, err := s.Pull(context.Background(), Reference{Registry, host + "/x/y@" + string(digestOf(b.index))}, nil)
	if err != nil || byDigest.Root != i.Root {
		t.Errorf("%+v %v", byDigest, err)
	}
	byDigest.Close()
	list, err := s.List()
	if err != nil || len(list) != 1 || len(list[0].Names) != 2 || list[0].Names[0].Manifest != string(digestOf(b.index)) {
		t.Errorf("%+v %v", list, err)
	}
	// The last name takes the image with it.
	if freed, err := s.Remove(host + "/x/y:z"); err != nil || freed != 0 {
		t.Errorf("%d %v", freed, err)
	}
	if freed, err := s.Remove(host + "/x/y@" + string(digestOf(b.index))); err != nil || freed == 0 {
		t.Errorf("%d %v", freed, err)
	}
	nothingLeft(t, s)
}

// TestLogin: the user's own docker configuration is what logs in.
func TestLogin(t *testing.T) {
	b := build(t, nil, imagetest.Tar(t, ordinary...))
	host := serving(t, b, func(w http.ResponseWriter, r *http.Request) bool {
		if user, password, ok := r.BasicAuth(); ok && user == "me" && password == "secret" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	docker := t.TempDir()
	t.Setenv("DOCKER_CONFIG", docker)
	s := store(t)
	ref := Reference{Registry, host + "/x/y:z"}
	if _, err := s.Pull(context.Background(), ref, nil); !refusedWith(err, "docker login "+host) {
		t.Errorf("%v", err)
	}
	nothingLeft(t, s)
	auth := base64.StdEncoding.EncodeToString([]byte("me:secret"))
	if err := os.WriteFile(filepath.Join(docker, "config.json"), fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, host, auth), 0o600); err != nil {
		t.Fatal(err)
	}
	i, err := s.Pull(context.Background(), ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	i.Close()

	// A helper that the configuration names is asked as docker asks it.
	helper := "#!/bin/sh\ntest \"$1\" = get && echo '{\"ServerURL\":\"x\",\"Username\":\"me\",\"Secret\":\"secret\"}'\n"
	if err := os.WriteFile(filepath.Join(docker, "docker-credential-bulkheadtest"), []byte(helper), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", docker+":"+os.Getenv("PATH"))
	if err := os.WriteFile(filepath.Join(docker, "config.json"), fmt.Appendf(nil, `{"credHelpers":{%q:"bulkheadtest"}}`, host), 0o600); err != nil {
		t.Fatal(err)
	}
	if i, err = store(t).Pull(context.Background(), ref, nil); err != nil {
		t.Fatal(err)
	}
	i.Close()
}

// TestRegistryLies: what a registry may do wrong ends with its reason and leaves
// nothing.
func TestRegistryLies(t *testing.T) {
	b := build(t, nil, imagetest.Tar(t, ordinary...))
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { t.Error("somebody else was asked: " + r.URL.Path) }))
	defer other.Close()
	stalled := make(chan struct{})
	defer close(stalled)
	stall := func(r *http.Request) {
		select {
		case <-stalled:
		case <-r.Context().Done():
		case <-time.After(20 * time.Second):
		}
	}
	blob := func(f func(http.ResponseWriter, *http.Request)) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !isBlob(r, b) {
				return false
			}
			f(w, r)
			return true
		}
	}
	layer := gzipped(t, b.layers[0])
	for name, c := range map[string]struct {
		lie func(http.ResponseWriter, *http.Request) bool
		why string
	}{
		"other content": {blob(func(w http.ResponseWriter, _ *http.Request) { w.Write(otherSystem(layer)) }), ""},
		"more content":  {blob(func(w http.ResponseWriter, _ *http.Request) { w.Write(append(layer, 'x')) }), ""},
		"less content": {blob(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(layer)))
			w.Write(layer[:10])
		}), ""},
		"no end": {blob(func(w http.ResponseWriter, _ *http.Request) {
			for range 1 << 14 {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		}), ""},
		"nothing at all": {func(_ http.ResponseWriter, r *http.Request) bool { stall(r); return true }, "does not answer"},
		"no manifest": {func(_ http.ResponseWriter, r *http.Request) bool {
			return strings.Contains(r.URL.Path, "manifests") && func() bool { stall(r); return true }()
		}, "does not answer"},
		"silence in a blob": {blob(func(w http.ResponseWriter, r *http.Request) { w.Write(layer[:10]); w.(http.Flusher).Flush(); stall(r) }), "does not answer"},
		"drops": {blob(func(w http.ResponseWriter, r *http.Request) {
			for i := range layer {
				if _, err := w.Write(layer[i : i+1]); err != nil {
					return
				}
				w.(http.Flusher).Flush()
				time.Sleep(50 * time.Millisecond)
			}
		}), "too slow"},
		"another server": {blob(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other.URL+"/blob", http.StatusFound) }), "not encrypted"},
		"the metadata": {blob(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://169.254.169.254/latest", http.StatusFound)
		}), "169.254.169.254"},
		"a file": {blob(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
		}), "not encrypted"},
		"in a circle": {blob(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }), "redirects"},
		"a login elsewhere": {func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+other.URL+`/token",service="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}, ""},
		"other manifest": {func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, "manifests/"+string(digestOf(b.manifest))) {
				return false
			}
			w.Header().Set("Content-Type", manifestTypes[0])
			w.Write(append([]byte(" "), b.manifest...))
			return true
		}, "manifest"},
		"large manifest": {func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, "manifests/z") {
				return false
			}
			w.Header().Set("Content-Type", manifestTypes[0])
			w.Write(append(bytes.Repeat([]byte(" "), 5<<20), b.manifest...))
			return true
		}, "are the most"},
		"HTML": {func(w http.ResponseWriter, r *http.Request) bool {
			io.WriteString(w, "<html>\x1b[31mlog in")
			return true
		}, ""},
		"no such image": {func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "manifests") {
				w.WriteHeader(http.StatusNotFound)
				return true
			}
			return false
		}, "has no such image"},
	} {
		t.Run(name, func(t *testing.T) {
			s := store(t)
			s.Patience = Patience{Silence: time.Second, Grace: time.Second, Rate: 1 << 10}
			begun := time.Now()
			_, err := s.Pull(context.Background(), Reference{Registry, serving(t, b, c.lie) + "/x/y:z"}, nil)
			if !refusedWith(err, c.why) {
				t.Errorf("%v; want: %s", err, c.why)
			}
			if err != nil && strings.ContainsRune(err.Error(), 0x1b) {
				t.Errorf("it reaches the terminal: %q", err)
			}
			if since := time.Since(begun); since > 18*time.Second {
				t.Errorf("it took %v", since)
			}
			nothingLeft(t, s)
		})
	}
}

// TestNearness: where a redirection may lead, and where never.
func TestNearness(t *testing.T) {
	for text, want := range map[string]int32{
		"127.0.0.1": loopback, "::1": loopback, "::ffff:127.0.0.1": loopback, "10.1.2.3": private, "192.168.0.1": private, "100.64.1.1": private,
		"fd00::1": private, "64:ff9b::7f00:1": private, "169.254.169.254": forbidden, "fe80::1": forbidden, "0.0.0.0": forbidden, "224.0.0.1": forbidden,
		"168.63.129.16": forbidden, "93.184.216.34": global, "2606:2800:220:1::1": global,
	} {
		if got := nearness(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: %d, want %d", text, got, want)
		}
	}
}

// TestOnlyOutwards: a name of somebody else's that leads to this machine is not
// dialled, whatever the library thinks of it.
func TestOnlyOutwards(t *testing.T) {
	asked := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it was asked") }))
	defer asked.Close()
	c := newClient("registry.example.com", DefaultPatience)
	addr := strings.TrimPrefix(asked.URL, "http://")
	if conn, err := c.dial(context.Background(), "tcp", addr); err == nil || !strings.Contains(err.Error(), "of this machine or network") {
		t.Errorf("%v %v", conn, err)
	}
	c = newClient(addr, DefaultPatience)
	conn, err := c.dial(context.Background(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}
