package process

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

const (
	hubKey    = "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"
	hubCommit = "0123456789abcdef0123456789abcdef01234567"
	hubToken  = "xet-token-that-stays-in-the-gateway"
)

var hubHosts = []string{"huggingface.co", "cas-bridge.xethub.hf.co", "cas-server.xethub.hf.co", "transfer.xethub.hf.co"}

// hub NAME: starts a stand-in for Hugging Face as true on the wire as its
// clients can tell: the hub, and the hosts of its storage. It holds the private
// model acme/words, and writes what it is asked into $WORK/NAME.log. Sets
// NAME_ADDR, NAME_CA, NAME_UPSTREAMS (lines for upstreams:) and CLIENTS (see
// setClients).
func cmdHub(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: hub NAME")
	}
	name := args[0]
	setClients(ts)
	log, err := os.OpenFile(filepath.Join(ts.Getenv("WORK"), name+".log"), os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	ts.Check(err)
	ts.Defer(func() { log.Close() })
	serveTLS(ts, name, hubHosts, false, &hub{log: log, files: map[string][]byte{
		"README.md": []byte("# words\n"), "config.json": []byte(`{"model_type":"words"}`), "data/words.txt": []byte("one\ntwo\n"),
		"model.safetensors": bytes.Repeat([]byte("weights "), 40_000),
	}})
	var b strings.Builder
	for _, host := range hubHosts {
		fmt.Fprintf(&b, "  %s: {connect: %q, ca: %q}\n", host, ts.Getenv(name+"_ADDR"), ts.Getenv(name+"_CA"))
	}
	ts.Setenv(name+"_UPSTREAMS", b.String())
}

// setClients sets CLIENTS, the folder with the clients from npm.
func setClients(ts *testscript.TestScript) {
	clients := filepath.Join(shared, "clients")
	if _, err := os.Stat(filepath.Join(clients, "node_modules", "yarn")); err != nil {
		ts.Fatalf("%v: scripts/install-deps test installs the clients from npm", err)
	}
	ts.Setenv("CLIENTS", clients)
}

type hub struct {
	mu    sync.Mutex
	log   *os.File
	files map[string][]byte
}

const hubLarge = "model.safetensors" // is in Xet, the others are in git

var hubRoutes = []struct {
	method  string
	path    *regexp.Regexp
	respond func(h *hub, w http.ResponseWriter, r *http.Request, at []string)
}{
	{"GET", regexp.MustCompile(`^/api/whoami-v2$`), func(h *hub, w http.ResponseWriter, r *http.Request, _ []string) {
		hubJSON(w, map[string]any{"type": "user", "id": "1", "name": "erin", "auth": map[string]any{"type": "access_token", "accessToken": map[string]any{"displayName": "t", "role": "write"}}})
	}},
	{"GET", regexp.MustCompile(`^/api/models$`), func(h *hub, w http.ResponseWriter, r *http.Request, _ []string) {
		hubJSON(w, []any{hubInfo()})
	}},
	{"GET", regexp.MustCompile(`^/api/models/acme/words(?:/revision/(.+))?$`), func(h *hub, w http.ResponseWriter, r *http.Request, _ []string) {
		hubJSON(w, hubInfo())
	}},
	{"GET", regexp.MustCompile(`^/api/models/acme/words/commits/(.+)$`), func(h *hub, w http.ResponseWriter, r *http.Request, _ []string) {
		w.Header().Set("X-Total-Count", "1")
		hubJSON(w, []any{map[string]any{"id": hubCommit, "title": "words", "message": "", "authors": []any{map[string]string{"user": "erin", "avatar": ""}}, "date": "2026-01-02T03:04:05.000Z"}})
	}},
	{"GET", regexp.MustCompile(`^/api/models/acme/words/tree/([^/]+)$`), (*hub).tree},
	{"POST", regexp.MustCompile(`^/api/models/acme/words/paths-info/([^/]+)$`), func(h *hub, w http.ResponseWriter, r *http.Request, _ []string) {
		var asked struct{ Paths []string }
		json.NewDecoder(r.Body).Decode(&asked)
		entries := []any{}
		for _, p := range asked.Paths {
			entries = append(entries, h.entry(p))
		}
		hubJSON(w, entries)
	}},
	{"GET", regexp.MustCompile(`^/acme/words/resolve/([^/]+)/(.+)$`), (*hub).resolve},
	{"GET", regexp.MustCompile(`^/api/resolve-cache/models/acme/words/` + hubCommit + `/(.+)$`), func(h *hub, w http.ResponseWriter, r *http.Request, at []string) {
		h.file(w, r, at[1])
	}},
	{"GET", regexp.MustCompile(`^/api/models/acme/words/xet-read-token/` + hubCommit + `$`), func(h *hub, w http.ResponseWriter, r *http.Request, _ []string) {
		until := time.Now().Add(time.Hour).Unix()
		w.Header().Set("X-Xet-Access-Token", hubToken)
		w.Header().Set("X-Xet-Token-Expiration", fmt.Sprint(until))
		w.Header().Set("X-Xet-Cas-Url", "https://cas-server.xethub.hf.co")
		hubJSON(w, map[string]any{"accessToken": hubToken, "exp": until, "casUrl": "https://cas-server.xethub.hf.co"})
	}},
	{"POST", regexp.MustCompile(`^/api/models/acme/words/preupload/([^/]+)$`), func(h *hub, w http.ResponseWriter, r *http.Request, _ []string) {
		var asked struct {
			Files []struct {
				Path string `json:"path"`
			} `json:"files"`
		}
		json.NewDecoder(r.Body).Decode(&asked)
		files := []any{}
		for _, f := range asked.Files {
			mode := "regular"
			if strings.HasSuffix(f.Path, ".safetensors") {
				mode = "lfs"
			}
			files = append(files, map[string]string{"path": f.Path, "uploadMode": mode})
		}
		hubJSON(w, map[string]any{"files": files, "commitOid": hubCommit})
	}},
	{"POST", regexp.MustCompile(`^/acme/words\.git/info/lfs/objects/batch$`), func(h *hub, w http.ResponseWriter, r *http.Request, _ []string) {
		var asked struct {
			Objects []map[string]any `json:"objects"`
		}
		json.NewDecoder(r.Body).Decode(&asked)
		for _, o := range asked.Objects {
			o["actions"] = map[string]any{"upload": map[string]any{"href": "https://hf-hub-lfs-us-east-1.s3-accelerate.amazonaws.com/repos/1?X-Amz-Signature=s"}}
		}
		hubJSON(w, map[string]any{"transfer": "basic", "objects": asked.Objects})
	}},
	{"POST", regexp.MustCompile(`^/api/models/acme/words/commit/([^/]+)$`), func(h *hub, w http.ResponseWriter, r *http.Request, _ []string) {
		hubJSON(w, map[string]any{"success": true, "commitOid": hubCommit, "commitUrl": "https://huggingface.co/acme/words/commit/" + hubCommit, "hookOutput": ""})
	}},
	{"POST", regexp.MustCompile(`^/api/(?:models/acme/words/branch/.+|repos/create)$`), func(h *hub, w http.ResponseWriter, r *http.Request, _ []string) {
		hubJSON(w, map[string]any{"url": "https://huggingface.co/acme/new", "name": "acme/new", "id": "2"})
	}},
}

// ServeHTTP knows the holder of the key at the hub, of the token at the storage, and
// of a signed address at the two hosts of bytes.
func (h *hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	r.Body = io.NopCloser(bytes.NewReader(body))
	line, _ := json.Marshal(seen{r.Proto, r.Method, r.Host, r.RequestURI, r.Header, string(body), ""})
	h.mu.Lock()
	_, err := h.log.Write(append(line, '\n'))
	h.mu.Unlock()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	key := r.Header.Get("Authorization")
	switch r.Host {
	case "cas-bridge.xethub.hf.co":
		if r.URL.Query().Get("X-Amz-Signature") == "" || key != "" {
			http.Error(w, "not signed", http.StatusForbidden)
			return
		}
		h.file(w, r, hubLarge)
	case "transfer.xethub.hf.co":
		if r.URL.Query().Get("Signature") == "" || key != "" {
			http.Error(w, "not signed", http.StatusForbidden)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(h.xorb()))
	case "cas-server.xethub.hf.co":
		h.reconstruct(w, r, key)
	default:
		for _, route := range hubRoutes {
			at := route.path.FindStringSubmatch(r.URL.EscapedPath())
			if at == nil || route.method != r.Method && r.Method != http.MethodHead {
				continue
			}
			if key != "Bearer "+hubKey {
				w.Header().Set("X-Error-Code", "RepoNotFound")
				w.WriteHeader(http.StatusUnauthorized)
				io.WriteString(w, `{"error":"Invalid username or password."}`)
				return
			}
			route.respond(h, w, r, at)
			return
		}
		w.Header().Set("X-Error-Code", "EntryNotFound")
		http.NotFound(w, r)
	}
}

func hubJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	json.NewEncoder(w).Encode(v)
}

func hubInfo() map[string]any {
	return map[string]any{"_id": "1", "id": "acme/words", "modelId": "acme/words", "private": true, "gated": false, "likes": 1, "downloads": 2, "sha": hubCommit, "lastModified": "2026-01-02T03:04:05.000Z"}
}

func (h *hub) entry(path string) map[string]any {
	data := h.files[path]
	e := map[string]any{"type": "file", "path": path, "size": len(data), "oid": fmt.Sprintf("%x", sha256.Sum256(data))[:40], "lastCommit": map[string]string{"id": hubCommit, "title": "words", "date": "2026-01-02T03:04:05.000Z"}}
	if path == hubLarge {
		e["lfs"] = map[string]any{"oid": fmt.Sprintf("%x", sha256.Sum256(data)), "size": len(data), "pointerSize": 130}
		e["xetHash"] = h.xetHash()
	}
	return e
}

// tree answers in two pages, led by a Link.
func (h *hub) tree(w http.ResponseWriter, r *http.Request, at []string) {
	if r.URL.Query().Get("cursor") != "" {
		hubJSON(w, []any{h.entry("data/words.txt"), h.entry(hubLarge)})
		return
	}
	w.Header().Set("Link", fmt.Sprintf(`<https://huggingface.co%s?recursive=true&expand=false&limit=3&cursor=ZXlKbWFXeGw%%3D%%3D>; rel="next"`, r.URL.EscapedPath()))
	hubJSON(w, []any{h.entry("README.md"), h.entry("config.json"), map[string]any{"type": "directory", "path": "data", "size": 0, "oid": hubCommit}})
}

// resolve leads small files to resolve-cache, and large ones to the storage, in
// the way that the client asks for.
func (h *hub) resolve(w http.ResponseWriter, r *http.Request, at []string) {
	data, ok := h.files[at[2]]
	if !ok {
		w.Header().Set("X-Error-Code", "EntryNotFound")
		http.NotFound(w, r)
		return
	}
	etag := fmt.Sprintf("%x", sha256.Sum256(data))
	w.Header().Set("X-Repo-Commit", hubCommit)
	if at[2] != hubLarge {
		q := url.QueryEscape(r.URL.Path) + "=&etag=" + url.QueryEscape(`"`+etag+`"`)
		w.Header().Set("Location", "/api/resolve-cache/models/acme/words/"+hubCommit+"/"+at[2]+"?"+q)
		w.WriteHeader(http.StatusTemporaryRedirect)
		return
	}
	w.Header().Set("X-Linked-Size", fmt.Sprint(len(data)))
	w.Header().Set("X-Linked-Etag", `"`+etag+`"`)
	w.Header().Set("X-Xet-Hash", h.xetHash())
	w.Header().Set("Link", `<https://huggingface.co/api/models/acme/words/xet-read-token/`+hubCommit+`>; rel="xet-auth", <https://cas-server.xethub.hf.co/v1/reconstructions/`+h.xetHash()+`>; rel="xet-reconstruction-info"`)
	if strings.Contains(r.Header.Get("Accept"), "application/vnd.xet-fileinfo+json") {
		w.Header().Set("Content-Type", "application/vnd.xet-fileinfo+json")
		io.WriteString(w, `{}`)
		return
	}
	http.Redirect(w, r, "https://cas-bridge.xethub.hf.co/xet-bridge-us/1/"+etag+"?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Content-Sha256=UNSIGNED-PAYLOAD&X-Amz-Credential=cas%2F20260102%2Fus-east-1%2Fs3%2Faws4_request"+
		"&X-Amz-Date=20260102T030405Z&X-Amz-Expires=3600&X-Amz-Signature=0123&X-Amz-SignedHeaders=host&X-Xet-Cas-Uid=1&response-content-disposition=inline%3B+filename%3D%22model.safetensors%22%3B&x-id=GetObject&Expires=1&Policy=p&Signature=s&Key-Pair-Id=K", http.StatusFound)
}

func (h *hub) file(w http.ResponseWriter, r *http.Request, name string) {
	data, ok := h.files[name]
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("ETag", fmt.Sprintf(`"%x"`, sha256.Sum256(data)))
	http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(data))
}

func (h *hub) xetHash() string { return fmt.Sprintf("%x", sha256.Sum256(h.files[hubLarge])) }

// xorb is the large file as one chunk, not compressed.
func (h *hub) xorb() []byte {
	n := len(h.files[hubLarge])
	size := []byte{byte(n), byte(n >> 8), byte(n >> 16)}
	return bytes.Join([][]byte{{0}, size, {0}, size, h.files[hubLarge]}, nil)
}

// reconstruct says where the pieces lie of the part of the file that Range names:
// its answer is no part of anything.
func (h *hub) reconstruct(w http.ResponseWriter, r *http.Request, key string) {
	var first, last int
	fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last)
	if key != "Bearer "+hubToken || r.URL.Path != "/v2/reconstructions/"+h.xetHash() {
		http.Error(w, "unauthorized", http.StatusUnauthorized)
		return
	}
	n := len(h.files[hubLarge])
	whole := map[string]int{"start": 0, "end": 1}
	hubJSON(w, map[string]any{
		"offset_into_first_range": first,
		"terms":                   []any{map[string]any{"hash": h.xetHash(), "unpacked_length": n, "range": whole}},
		"xorbs": map[string]any{h.xetHash(): []any{map[string]any{
			"url":    "https://transfer.xethub.hf.co/xorbs/default/" + h.xetHash() + "?X-Xet-Signed-Range=bytes%3D0-" + fmt.Sprint(n+7) + "&Expires=1&Policy=p&Signature=s&Key-Pair-Id=K",
			"ranges": []any{map[string]any{"chunks": whole, "bytes": map[string]int{"start": 0, "end": n + 7}}},
		}}},
	})
}
