package process

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
)

// images is a stand-in for Docker Hub: the registry, its token endpoint and the
// host to which it sends clients for layers. library/words is public; acme/app
// is for the holder of hubPassword.
type images struct {
	mu     sync.Mutex
	tokens map[string]string // token: scope
	blobs  map[string][]byte // by digest
	types  map[string]string
	latest string
	layer  string
}

const hubPassword = "dckr_pat_the-real-one-0123456789"

func digest(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

func newImages() *images {
	m := &images{tokens: map[string]string{}, blobs: map[string][]byte{}, types: map[string]string{}}
	layer := tarGz(file{"words.txt", "pulled by skopeo\n"})
	config := []byte(`{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]}}`)
	m.layer = digest(layer)
	manifest, _ := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": map[string]any{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(config), "size": len(config)},
		"layers": []any{map[string]any{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": m.layer, "size": len(layer)}}})
	m.latest = digest(manifest)
	for _, b := range [][]byte{layer, config, manifest} {
		m.blobs[digest(b)] = b
	}
	m.types[m.latest] = "application/vnd.oci.image.manifest.v1+json"
	return m
}

func (m *images) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.Host {
	case "auth.docker.io":
		m.token(w, r)
	case "production.cloudflare.docker.com":
		if r.Header.Get("Authorization") != "" || r.URL.Query().Get("verify") == "" {
			http.Error(w, "the address is the only key here", http.StatusForbidden)
			return
		}
		w.Write(m.blobs[m.layer])
	default:
		m.registry(w, r)
	}
}

// token answers like Docker Hub: anybody may pull what is public.
func (m *images) token(w http.ResponseWriter, r *http.Request) {
	scope := r.URL.Query().Get("scope")
	_, password, _ := r.BasicAuth()
	if password != "" && password != hubPassword {
		http.Error(w, `{"details":"incorrect username or password"}`, http.StatusUnauthorized)
		return
	}
	if password == "" && scope != "repository:library/words:pull" {
		scope = ""
	}
	t := "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9." + rand.Text() + rand.Text() + "." + rand.Text()
	m.mu.Lock()
	m.tokens[t] = scope
	m.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]any{"token": t, "access_token": t, "expires_in": 300, "issued_at": "2026-01-02T03:04:05Z", "refresh_token": "refresh-" + t})
}

func (m *images) registry(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.Path, "/v2/")
	repository, what := path, ""
	for _, part := range []string{"/manifests/", "/blobs/"} {
		if i := strings.Index(path, part); i >= 0 {
			repository, what = path[:i], path[i+len(part):]
		}
	}
	m.mu.Lock()
	scope := m.tokens[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]
	m.mu.Unlock()
	verb := "pull"
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		verb = "push"
	}
	of, verbs, _ := strings.Cut(strings.TrimPrefix(scope, "repository:"), ":")
	if of != repository || !strings.Contains(verbs, verb) {
		w.Header().Set("Www-Authenticate", `Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:`+repository+`:pull"`)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusUnauthorized)
		io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
		return
	}
	if verb == "push" {
		w.Header().Set("Location", "/v2/"+repository+"/blobs/uploads/1")
		w.WriteHeader(http.StatusAccepted)
		return
	}
	if what == "1.2.3" {
		what = m.latest
	}
	b, ok := m.blobs[what]
	switch {
	case !ok:
		http.NotFound(w, r)
	case what == m.layer:
		http.Redirect(w, r, "https://production.cloudflare.docker.com/registry-v2/docker/registry/v2/blobs/layer/data?verify=1700000000-abc", http.StatusTemporaryRedirect)
	default:
		w.Header().Set("Content-Type", m.types[what])
		w.Header().Set("Docker-Content-Digest", what)
		w.Write(b)
	}
}
