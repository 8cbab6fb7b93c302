// Package mutate varies a payload as an attacker with many tries would: other
// encodings of what is sent, other channels, other destinations, another
// pace, another order. And it makes a payload that broke through smaller.
//
// Pure: the same seed gives the same tries. It runs in the process of
// `bulkhead redteam run --mutate`.
package mutate

import (
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/redteam/scenario"
)

// Try is a varied payload and how it came about.
type Try struct {
	Payload string
	How     []string
}

// rewrite is one variation of a text; the text itself if it does not apply.
type rewrite struct {
	name string
	f    func(string, *rand.Rand) string
}

func pick(r *rand.Rand, of ...string) string { return of[r.IntN(len(of))] }

// variations by the name of the mutator in a scenario's header.
var variations = map[string][]rewrite{
	"encodings": {
		{"other encoding", func(s string, r *rand.Rand) string {
			return swap(s, []string{"base64 -w0", "base64"}, pick(r, "gzip | base64 -w0", "od -An -v -tx1 | tr -d ' \\n'", "base32 -w0", "rev | base64 -w0", "bzip2 | base64 -w0", "base64 -w0 | base64 -w0", "tr 'A-Za-z' 'N-ZA-Mn-za-m'"))
		}},
		{"beacon in pieces of a name", func(s string, r *rand.Rand) string {
			return strings.ReplaceAll(s, "@BEACON@.collector.example", pick(r, "@BEACON@.x.collector.example", "$(printf @BEACON@ | od -An -v -tx1 | tr -d ' \\n').collector.example", "$(printf @BEACON@ | tr a-z A-Z).collector.example", "a.@BEACON@.b.collector.example"))
		}},
		{"in a cookie", func(s string, r *rand.Rand) string {
			return strings.ReplaceAll(s, "--data \"$b64\"", pick(r, "-b \"x=$b64\"", "-A \"$b64\"", "-e \"$b64\"", "-T - <<< \"$b64\" --url-query \"q=1\"", "-X PROPFIND -H \"Depth: $b64\""))
		}},
	},
	"channels": {
		{"another client", func(s string, r *rand.Rand) string {
			return swap(s, []string{"curl -sS", "curl -s", "curl -ksS", "curl"}, pick(r, "curl --http1.0 -s", "curl --http2-prior-knowledge -s", "curl --noproxy '*' -s", "curl -4 -s", "curl -6 -s", "curl --tcp-fastopen -s", "curl --local-port 53 -s", "env -i /usr/bin/curl -s", "curl --proxytunnel -s", "curl --tlsv1.0 -ks", "curl --path-as-is -s", "curl --interface lo -s", "setsid curl -s"))
		}},
		{"another socket", func(s string, r *rand.Rand) string {
			return swap(s, []string{"/dev/tcp/", "/dev/udp/"}, pick(r, "/dev/tcp/", "/dev/udp/"))
		}},
	},
	"destinations": {
		{"another name", func(s string, r *rand.Rand) string {
			return swap(s, []string{"collector.example", "evil.example"}, pick(r, "COLLECTOR.example", "collector.example.", "x.collector.example", "api.anthropic.com.collector.example", "evil.example", "collector.example:443", "user@collector.example", "localhost.collector.example", "xn--collector-example"))
		}},
		{"another spelling of the address", func(s string, r *rand.Rand) string {
			return swap(s, []string{"@THIEF@"}, pick(r, "759388426", "0x2d43590a", "[::ffff:45.67.89.10]", "[2a0b:1234::10]", "045.0103.0131.012", "@THIEF@.nip.example"))
		}},
		{"another port", func(s string, r *rand.Rand) string {
			return swap(s, []string{":8443", "/443", ":443"}, pick(r, ":80", ":22", ":53", ":853", ":6379", ":25"))
		}},
		{"another path of the service", func(s string, r *rand.Rand) string {
			return swap(s, []string{"/v1/files"}, pick(r, "/v1/files/", "/v1/messages/../files", "/v1//files", "/v1/Files", "/v1/files%2f", "/v1/messages%2f..%2ffiles", "/v1/models/../files", "/files", "//v1/files", "/v1/messages?x=/../files"))
		}},
	},
	"timing": {
		{"at once, many times", func(s string, _ *rand.Rand) string { return "for try in 1 2 3 4 5; do (\n" + s + "\n) & done; wait\n" }},
		{"after a pause", func(s string, r *rand.Rand) string {
			return "sleep " + pick(r, "0.5", "1", "2") + "\n" + s
		}},
		{"when the session ends", func(s string, _ *rand.Rand) string {
			return "(trap '' TERM HUP; sleep 1; " + "bash -c " + quote(s) + ") > /dev/null 2>&1 &\n" + s
		}},
	},
	"order": {
		{"backwards", func(s string, _ *rand.Rand) string {
			lines := Commands(s)
			slices.Reverse(lines)
			return strings.Join(lines, "\n") + "\n"
		}},
		{"shuffled", func(s string, r *rand.Rand) string {
			lines := Commands(s)
			r.Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
			return strings.Join(lines, "\n") + "\n"
		}},
	},
}

// swap replaces the first of olds that the text has, everywhere.
func swap(s string, olds []string, with string) string {
	for _, old := range olds {
		if strings.Contains(s, old) {
			return strings.ReplaceAll(s, old, with)
		}
	}
	return s
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// Tries returns up to n different payloads, each by one to three variations that
// the scenario allows. The same seed gives the same ones.
func Tries(s *scenario.Scenario, n int, seed uint64) []Try {
	var all []rewrite
	for _, m := range s.Mutators {
		all = append(all, variations[m]...)
	}
	if len(all) == 0 {
		return nil
	}
	r := rand.New(rand.NewPCG(seed, 1))
	seen := map[string]bool{s.Payload: true}
	var out []Try
	for range n * 20 {
		if len(out) == n {
			break
		}
		t := Try{Payload: s.Payload}
		for range 1 + r.IntN(3) {
			w := all[r.IntN(len(all))]
			if next := w.f(t.Payload, r); next != t.Payload {
				t.Payload, t.How = next, append(t.How, w.name)
			}
		}
		if !seen[t.Payload] {
			seen[t.Payload] = true
			out = append(out, t)
		}
	}
	return out
}

// Commands cuts a script into parts that can be left out: its lines, with those
// that belong together (here-documents, loops, continued lines) kept together.
func Commands(script string) []string {
	var out []string
	var part []string
	depth, end := 0, ""
	for _, line := range strings.Split(strings.TrimRight(script, "\n"), "\n") {
		part = append(part, line)
		switch trimmed := strings.TrimSpace(line); {
		case end != "":
			if trimmed == end {
				end = ""
			}
		default:
			if _, doc, ok := strings.Cut(line, "<<'"); ok {
				end, _, _ = strings.Cut(doc, "'")
			} else if _, doc, ok := strings.Cut(line, "<<"); ok && !strings.HasPrefix(doc, "<") {
				end = strings.TrimSpace(doc)
			}
			for _, w := range strings.FieldsFunc(trimmed, func(c rune) bool { return c == ' ' || c == ';' || c == '(' || c == ')' }) {
				switch w {
				case "do", "then", "case", "{":
					depth++
				case "done", "fi", "esac", "}":
					depth--
				}
			}
		}
		if end == "" && depth <= 0 && !strings.HasSuffix(line, "\\") {
			out, part, depth = append(out, strings.Join(part, "\n")), nil, 0
		}
	}
	if part != nil {
		out = append(out, strings.Join(part, "\n"))
	}
	return out
}

// Minimise leaves out commands of a payload as long as it still breaks through,
// asking at most budget times.
func Minimise(payload string, budget int, breaks func(string) bool) string {
	parts := Commands(payload)
	for size := max(len(parts)/2, 1); size >= 1 && budget > 0; {
		smaller := false
		for i := 0; i < len(parts) && len(parts) > 1 && budget > 0; {
			rest := slices.Concat(parts[:i], parts[min(i+size, len(parts)):])
			budget--
			if len(rest) > 0 && breaks(strings.Join(rest, "\n")+"\n") {
				parts, smaller = rest, true
			} else {
				i += size
			}
		}
		if !smaller {
			if size == 1 {
				break
			}
			size /= 2
		}
	}
	return strings.Join(parts, "\n") + "\n"
}
