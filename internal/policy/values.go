package policy

import (
	"encoding/json"
	"fmt"
	"math"
	"path"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

const (
	lower  = "abcdefghijklmnopqrstuvwxyz"
	upper  = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits = "0123456789"
	alnum  = lower + upper + digits
)

// made reports whether s has between 1 and limit bytes, the first of them one
// of first and the others of rest.
func made(s, first, rest string, limit int) bool {
	return s != "" && len(s) <= limit && strings.Contains(first, s[:1]) && strings.Trim(s[1:], rest) == ""
}

// isWord is the form of the names of services, operations and presets.
func isWord(s string) bool {
	return made(s, lower, lower+digits+"_-", 64) && !strings.ContainsAny(s[len(s)-1:], "_-")
}

func isCredentialName(s string) bool { return made(s, alnum, alnum+"._-", 64) }

func isEnvName(s string) bool { return made(s, lower+upper+"_", alnum+"_", 256) }

func isHeader(s string) bool { return made(s, lower, lower+digits+"-", 64) }

func isResource(s string) bool {
	return made(s, alnum+"@*", alnum+"@._:/*+-", 1024) && !strings.Contains(s, "..")
}

// problem is what is wrong with one value and what to write instead.
type problem struct{ msg, hint string }

// loaderVariable explains why a variable cannot be given to a sandbox, or is
// empty. The list is what ld.so(8) and dyld(1) take code or its place from,
// and what glibc ignores in secure execution because it loads modules
// (sysdeps/generic/unsecvars.h: GCONV_PATH, GETCONF_DIR, GLIBC_TUNABLES).
func loaderVariable(name string) string {
	n := strings.ToUpper(name)
	switch {
	case strings.HasPrefix(n, "LD_"), strings.HasPrefix(n, "DYLD_"),
		n == "GCONV_PATH", n == "GETCONF_DIR", n == "GLIBC_TUNABLES":
		return "it makes the dynamic loader run foreign code in every program, Bulkhead's helpers included"
	case strings.HasPrefix(n, "BULKHEAD_"):
		return "BULKHEAD_ is reserved for Bulkhead itself"
	}
	return ""
}

func checkEnvName(name string) *problem {
	if !isEnvName(name) {
		return &problem{quoted(name) + " is not a name of an environment variable", "letters, digits and _, not beginning with a digit"}
	}
	if why := loaderVariable(name); why != "" {
		hint := "remove it"
		if strings.HasPrefix(strings.ToUpper(name), "LD_") {
			hint = "to use it for one program: CMD = env " + name + "=… PROGRAM"
		}
		return &problem{name + " is refused: " + why, hint}
	}
	return nil
}

// homeVariable is the only variable that env.set expands.
const homeVariable = "${HOME}"

func checkEnvValue(v string) *problem {
	if len(v) > 64<<10 {
		return &problem{fmt.Sprintf("value of %d bytes", len(v)), "at most 65536"}
	}
	if rest := strings.ReplaceAll(v, homeVariable, ""); strings.Contains(rest, "${") {
		return &problem{"only " + homeVariable + " is expanded in values", "write the value out"}
	}
	return nil
}

// inFile are what env.files expands: the workspace, a variable inside, the end of
// one, and one without which there is no file.
var inFile = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`\$\{(WORKSPACE|[A-Z_][A-Z0-9_]*)(?:: -([0-9]{1,3})|(:\?))?\}`)
})

func checkHomeFile(s string) (string, *problem) {
	if !strings.HasPrefix(s, "~/") {
		return "", &problem{quoted(s) + " is not in the private home", "begin it with ~/"}
	}
	clean, p := cleanPath(s)
	if p == nil && (clean == "~" || strings.HasPrefix(clean, "~/..")) {
		p = &problem{quoted(s) + " is not a file in the private home", "write ~/NAME"}
	}
	return clean, p
}

func checkContent(v string) *problem {
	if len(v) > 64<<10 {
		return &problem{fmt.Sprintf("content of %d bytes", len(v)), "at most 65536"}
	}
	if strings.Contains(inFile().ReplaceAllString(v, ""), "${") {
		return &problem{"an expression in a file's content that is not expanded", "${WORKSPACE}, ${NAME}, ${NAME: -20}, its last 20 characters, or ${NAME:?}, without which there is no file"}
	}
	return nil
}

// ExpandFile returns a file's content: values are those of the environment inside
// and of WORKSPACE, written as in a string of JSON. ok is false if there is to be
// no file.
func (v EnvVar) ExpandFile(lookup func(name string) string) (content string, ok bool) {
	ok = true
	content = inFile().ReplaceAllStringFunc(v.Value, func(at string) string {
		parts := inFile().FindStringSubmatch(at)
		value := lookup(parts[1])
		ok = ok && (value != "" || parts[3] == "")
		if n, err := strconv.Atoi(parts[2]); err == nil && n < len(value) {
			value = value[len(value)-n:]
		}
		literal, _ := json.Marshal(value) // of a string: never fails
		return string(literal[1 : len(literal)-1])
	})
	return content, ok
}

// Expand returns the variable's value with "${HOME}" replaced.
func (v EnvVar) Expand(home string) string { return strings.ReplaceAll(v.Value, homeVariable, home) }

// cleanPath checks a path of the file and removes what changes nothing in it:
// doubled and trailing slashes and "." elements.
func cleanPath(s string) (string, *problem) {
	if len(s) > 4096 {
		return "", &problem{fmt.Sprintf("path of %d bytes", len(s)), "at most 4096"}
	}
	rest, home := s, false
	switch {
	case s == "~":
		return s, nil
	case strings.HasPrefix(s, "~/"):
		rest, home = s[1:], true
	case s[0] == '~':
		return "", &problem{"the home of another user in " + quoted(s), "write the absolute path"}
	case s[0] == '$':
		return "", &problem{"variables are not expanded in " + quoted(s), "write ~/… for your home"}
	}
	clean := path.Clean(rest)
	if path.IsAbs(rest) {
		if strings.Contains(rest+"/", "/../") {
			return "", &problem{"path " + quoted(s) + " goes up with ..", "write where it leads to"}
		}
	} else if hasInnerUp(rest) {
		return "", &problem{"path " + quoted(s) + " goes down and up again", "write where it leads to"}
	}
	if home {
		if clean == "/" {
			return "~", nil
		}
		return "~" + clean, nil
	}
	return clean, nil
}

// hasInnerUp reports a ".." after an element that is neither "." nor "..":
// what it leads to depends on whether that element is a symbolic link.
func hasInnerUp(s string) bool {
	down := false
	for _, e := range strings.Split(s, "/") {
		switch e {
		case "", ".":
		case "..":
			if down {
				return true
			}
		default:
			down = true
		}
	}
	return false
}

// ResolvePath makes a path of a policy absolute. home and cwd are absolute.
func ResolvePath(p, home, cwd string) string {
	switch {
	case p == "~":
		return home
	case strings.HasPrefix(p, "~/"):
		return path.Join(home, p[2:])
	case path.IsAbs(p):
		return p
	}
	return path.Join(cwd, p)
}

var sizeUnits = map[string]uint{"B": 0, "KiB": 10, "MiB": 20, "GiB": 30, "TiB": 40}

func parseSize(s string) (int64, *problem) {
	number := strings.TrimRight(s, "BKMGTi")
	shift, ok := sizeUnits[s[len(number):]]
	if !ok || !made(number, digits[1:], digits, 19) {
		return 0, &problem{quoted(s) + " is not a size", "a whole number with B, KiB, MiB, GiB or TiB: 2GiB"}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n > math.MaxInt64>>shift {
		return 0, &problem{quoted(s) + " is too large", "at most 8388607TiB"}
	}
	return n << shift, nil
}

func parseMemory(s string) (int64, *problem) {
	n, p := parseSize(s)
	if p == nil && n < 16<<20 {
		return 0, &problem{quoted(s) + " is too small to start a program", "at least 16MiB"}
	}
	return n, p
}

func parseSizeFrom(s string, least int64) (int64, *problem) {
	n, p := parseSize(s)
	if p == nil && n < least {
		return 0, &problem{quoted(s) + " is too small", "at least " + sizeString(least)}
	}
	return n, p
}

func parseCount(key string, n *yaml.Node, least, most int64) (int64, *problem) {
	count, err := strconv.ParseInt(n.Value, 10, 64)
	if err != nil || n.Tag != "!!int" || strconv.FormatInt(count, 10) != n.Value || count < least || count > most {
		return 0, &problem{key + " is " + quoted(n.Value), fmt.Sprintf("a whole number from %d to %d; for no limit remove the key", least, most)}
	}
	return count, nil
}

// sizeString is the shortest exact form of n.
func sizeString(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	i := 0
	for i < len(units)-1 && n%1024 == 0 && n != 0 {
		n, i = n/1024, i+1
	}
	return strconv.FormatInt(n, 10) + units[i]
}

func parseWall(s string) (time.Duration, *problem) {
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, &problem{quoted(s) + " is not a duration", "a number with s, m or h: 90m"}
	}
	if d < time.Second || d > 366*24*time.Hour {
		return 0, &problem{quoted(s) + " is out of range", "from 1s to 8784h"}
	}
	return d, nil
}

// wallString is d without the zeros that time.Duration prints.
func wallString(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// parseCommand splits a command without a shell.
func parseCommand(s string) ([]string, *problem) {
	if strings.ContainsAny(s, "'\"\\`$|&;<>()*?{}[]~#") {
		return nil, &problem{"no shell reads this command", `write it as a list: [pass, show, "my key"]`}
	}
	argv := strings.Fields(s)
	if len(argv) == 0 {
		return nil, &problem{"the command is empty", ""}
	}
	return argv, nil
}

// knownMethods are those of RFC 9110 section 9 and RFC 5789 that go to a
// resource of an origin server. CONNECT and TRACE go to the proxy. WEBSOCKET is
// the handshake of a WebSocket, which GET does not grant.
var knownMethods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "WEBSOCKET"}

// refusedHeaders frame, route or negotiate a message; no credential travels in
// them.
var refusedHeaders = map[string]bool{
	"host": true, "connection": true, "content-length": true, "content-type": true, "content-encoding": true,
	"transfer-encoding": true, "te": true, "trailer": true, "upgrade": true, "expect": true, "keep-alive": true,
	"proxy-connection": true, "proxy-authorization": true, "proxy-authenticate": true, "cookie": true, "via": true,
	"forwarded": true, "range": true, "accept": true, "accept-encoding": true, "user-agent": true,
}

func parseProfile(s string) (vocabulary.Profile, *problem) {
	p, err := vocabulary.ParseProfile(s)
	return p, vocabularyProblem("profile", s, err, string(vocabulary.Developer), string(vocabulary.KnowledgeWorker), string(vocabulary.Server))
}

func parseIsolation(s string) (vocabulary.Isolation, *problem) {
	i, err := vocabulary.ParseIsolation(s)
	return i, vocabularyProblem("isolation", s, err, string(vocabulary.Process), string(vocabulary.Container), string(vocabulary.VM), string(vocabulary.Auto))
}

func parseMode(s string, staged bool) (vocabulary.MountMode, *problem) {
	m, err := vocabulary.ParseMountMode(s)
	known := []string{string(vocabulary.ReadOnly), string(vocabulary.ReadWrite), string(vocabulary.RWNoDelete)}
	if staged {
		known = append(known, string(vocabulary.StagedWrites))
	} else if m == vocabulary.StagedWrites {
		return "", &problem{"mode staged is only for the workspace", Suggest("", known)}
	}
	return m, vocabularyProblem("mode", s, err, known...)
}

func vocabularyProblem(what, s string, err error, known ...string) *problem {
	if err == nil {
		return nil
	}
	return &problem{"unknown " + what + " " + quoted(s), Suggest(s, known)}
}

// isDecimal is a plain number below 100,000 with at most three decimals.
func isDecimal(s string) bool {
	whole, fraction, point := strings.Cut(s, ".")
	return made(whole, digits, digits, 5) && (!point || made(fraction, digits, digits, 3))
}
