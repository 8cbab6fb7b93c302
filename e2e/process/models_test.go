package process

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"crypto/tls"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

//go:embed testdata/attacks/models.py
var attackModels string

const modelPolicy = `version: 1
grants:
  - {service: anthropic, operations: [messages, files], credential: claude}
  - {service: openai, operations: [responses, files, realtime], credential: codex}
  - {service: gemini, operations: [generate], credential: gemini}
  - {service: datadog, operations: [logs]}
  - {service: statsig, operations: [codex-metrics]}
  - {service: sentry, operations: [codex-feedback]}
credentials:
  claude: {from: {env: ANTHROPIC_API_KEY}}
  codex: {from: {env: OPENAI_API_KEY}}
  gemini: {from: {env: GEMINI_API_KEY}}
upstreams:
`

// modelHosts are the stand-ins, and where the session's real key may arrive:
// one header each, and nowhere else.
var modelHosts = map[string][2]string{
	"api.anthropic.com":                  {"X-Api-Key", realKey},
	"api.openai.com":                     {"Authorization", "Bearer " + realOpenAIKey},
	"generativelanguage.googleapis.com":  {"X-Goog-Api-Key", realGeminiKey},
	"http-intake.logs.us5.datadoghq.com": {},
	"ab.chatgpt.com":                     {},
	"o33249.ingest.us.sentry.io":         {},
	"o666.ingest.us.sentry.io":           {},
}

// everything is one request with all that a key could hide in.
type everything struct {
	Proto, Method, Host, URI string
	Header, Trailer          http.Header
	Body                     []byte
}

// TestModelAttacks: a foreign key in any place of a request, over HTTP/1.1 and
// HTTP/2, never arrives at a model provider or a collector of reports; the real
// key arrives in its header only; bodies are read as the provider reads them
// (EXF-01, EXF-03, EXF-04, EXF-07, EXF-14, CRD-10, PXY-33).
func TestModelAttacks(t *testing.T) {
	dir := t.TempDir()
	var hosts []string
	policy := modelPolicy
	for h := range modelHosts {
		hosts = append(hosts, h)
	}
	cert, caPEM, err := certificate(hosts)
	check(t, err)
	caFile := filepath.Join(dir, "ca.pem")
	check(t, os.WriteFile(caFile, caPEM, 0o644))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	var mu sync.Mutex
	var record []everything
	server := &http.Server{TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}, ReadHeaderTimeout: patience}
	server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		mu.Lock()
		record = append(record, everything{r.Proto, r.Method, r.Host, r.RequestURI, r.Header.Clone(), r.Trailer.Clone(), body})
		mu.Unlock()
		if r.Header.Get("Upgrade") == "" {
			fmt.Fprint(w, `{"ok":true}`)
			return
		}
		c, buf, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		sum := sha1.Sum([]byte(r.Header.Get("Sec-Websocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
		accept := base64.StdEncoding.EncodeToString(sum[:])
		fmt.Fprintf(buf, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\nSec-WebSocket-Protocol: realtime\r\n\r\n", accept)
		buf.Flush()
		io.Copy(io.Discard, bufio.NewReader(buf))
	})
	go server.ServeTLS(l, "", "")
	defer server.Close()
	for _, h := range hosts {
		policy += fmt.Sprintf("  %s: {connect: %q, ca: %q}\n", h, l.Addr(), caFile)
	}

	all := map[string]*tally{}
	out := attackInside(t, dir, policy, attackModels)
	count(all, out)
	t.Log(attackTable(all))
	for id, a := range all {
		if len(a.broken) > 0 || len(a.invalid) > 0 {
			t.Errorf("%s: not refused %q, controls that failed %q", id, a.broken, a.invalid)
		}
		if a.attacks == 0 && id != "PXY-23" {
			t.Errorf("%s: no attack was tried", id)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	arrived := map[string]int{}
	for _, r := range record {
		arrived[r.Host+" "+r.Proto]++
		if r.Header.Get("Content-Encoding") != "" && r.Header.Get("Content-Encoding") != "identity" {
			t.Errorf("PXY-33: a body arrived that nobody has read: %s", show(r))
		}
		if hasThief(r) {
			t.Errorf("EXF-01: it arrived: %s", show(r))
		}
		for _, real := range []string{realKey, realOpenAIKey, realGeminiKey} {
			slot := modelHosts[r.Host]
			n := strings.Count(show(r), real)
			right := slot[0] != "" && strings.HasSuffix(slot[1], real) && len(r.Header.Values(slot[0])) == 1 && r.Header.Get(slot[0]) == slot[1]
			if n > 0 && !right || n > 1 {
				t.Errorf("CRD-10: a real key arrived %d times: %s", n, show(r))
			}
		}
	}
	for host, slot := range modelHosts {
		for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
			if slot[0] != "" && arrived[host+" "+proto] == 0 && arrived[host+" HTTP/2.0"] == 0 {
				t.Errorf("invalid: nothing arrived at %s, so the way was not open", host)
			}
		}
	}
	events, err := os.ReadFile(filepath.Join(dir, "events.jsonl"))
	check(t, err)
	for line := range bytes.Lines(events) {
		for _, word := range []string{realKey, realOpenAIKey, realGeminiKey, "sk-ant-api03-THIEF", "sk-proj-THIEF", "AIzaTHIEF"} {
			if bytes.Contains(line, []byte(word)) {
				t.Errorf("AUD-05: a credential stands in the event log: %s", line)
			}
		}
	}
}

func show(r everything) string {
	b, _ := json.Marshal(map[string]any{"proto": r.Proto, "method": r.Method, "host": r.Host, "uri": r.URI, "header": r.Header, "trailer": r.Trailer, "body": string(r.Body)})
	return string(b)
}

// hasThief looks for the attacker's key in every form in which it was sent.
func hasThief(r everything) bool {
	text := show(r)
	for _, form := range []string{"THIEF", "thief", "T\\u0048IEF", "%54HIEF"} {
		if strings.Contains(text, form) {
			return true
		}
	}
	// Base64 in the three ways in which it can lie across groups of three.
	for _, pad := range []string{"", "x", "xx"} {
		enc := base64.StdEncoding.EncodeToString([]byte(pad + "THIEF-0123456789"))
		if strings.Contains(text, enc[4:len(enc)-4]) {
			return true
		}
	}
	return bytes.Contains(r.Body, []byte("T\x00H\x00I\x00E\x00F"))
}
