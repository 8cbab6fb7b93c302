package rules

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/switches"
)

// ConfigLimit bounds a configuration file of git, in bytes.
const ConfigLimit = 1 << 20

// Entry is one line of a git configuration.
type Entry struct {
	Section, Sub, Key string // section and key in lower case
	Value             string
	line              int
}

func (e Entry) name() string {
	if e.Sub != "" {
		return e.Section + "." + e.Sub + "." + e.Key
	}
	return e.Section + "." + e.Key
}

func (e Entry) same(o Entry) bool { return e.name() == o.name() && e.Value == o.Value }

// CheckConfig judges a change of a git configuration from one content to
// another; before is nil if there was none when the session began. Entries that
// name no program, no other configuration and no place outside may come and go.
// All others must stay what and where they were, and so must the places that an
// existing remote or branch leads to. inside judges a path that git writes to.
func CheckConfig(after, before []byte, inside func(path string) bool) error {
	if switches.Off("protected") {
		return nil
	}
	next, err := parseConfig(after)
	if err != nil {
		return err
	}
	var now []Entry
	if before != nil {
		if now, err = parseConfig(before); err != nil {
			return fmt.Errorf("what is there now is written in a way that is not understood: %w", err)
		}
	}
	var kept []Entry
	for _, e := range now {
		if !harmless(e, inside) || e.leads() {
			kept = append(kept, e)
		}
	}
	led := map[string]bool{}
	for _, e := range kept {
		led[e.name()] = e.leads()
	}
	i := 0
	for _, e := range next {
		if harmless(e, inside) && !led[e.name()] {
			continue
		}
		for i < len(kept) && kept[i].mayGo() && !kept[i].same(e) {
			i++
		}
		if i == len(kept) || !kept[i].same(e) {
			return fmt.Errorf("line %d: %s can run programs, or leads elsewhere", e.line, e.name())
		}
		i++
	}
	for ; i < len(kept); i++ {
		if !kept[i].mayGo() {
			return fmt.Errorf("%s is no longer there", kept[i].name())
		}
	}
	return nil
}

// leads reports whether an entry says where commits go or come from.
func (e Entry) leads() bool {
	switch e.Section {
	case "remote":
		return e.Key == "url" || e.Key == "pushurl" || e.Key == "push"
	case "branch":
		return e.Key == "remote" || e.Key == "pushremote" || e.Key == "merge"
	}
	return false
}

// mayGo reports whether an entry may be taken away: that of a branch, which goes
// with the branch.
func (e Entry) mayGo() bool { return e.Section == "branch" && e.leads() }

// anyValue accepts a value that git only compares or prints.
func anyValue(string) bool { return true }

func oneOf(values ...string) func(string) bool {
	return func(v string) bool { return slices.Contains(values, strings.ToLower(v)) }
}

// place accepts where a repository can be fetched from: no transport that is a
// program, nothing that reads as an option.
func place(v string) bool {
	return v != "" && !strings.HasPrefix(v, "-") && !strings.Contains(v, "::") && !strings.ContainsFunc(v, func(r rune) bool { return r < 0x20 })
}

func number(v string) bool {
	return v != "" && len(v) < 10 && strings.Trim(v, "0123456789") == ""
}

var boolean = oneOf("true", "false", "yes", "no", "on", "off", "1", "0", "")

// harmlessKeys are the entries that anybody may set, by section and key. A
// section with sub-sections is written with a dot. Everything else names
// programs or may in some version of git.
var harmlessKeys = map[string]map[string]func(string) bool{
	"core": {"repositoryformatversion": number, "filemode": boolean, "bare": boolean, "logallrefupdates": oneOf("true", "false", "always"),
		"ignorecase": boolean, "precomposeunicode": boolean, "symlinks": boolean, "autocrlf": oneOf("true", "false", "input"),
		"safecrlf": oneOf("true", "false", "warn"), "eol": oneOf("lf", "crlf", "native"), "quotepath": boolean,
		"sparsecheckout": boolean, "sparsecheckoutcone": boolean, "abbrev": anyValue, "worktree": nil},
	"extensions": {"objectformat": oneOf("sha1", "sha256"), "compatobjectformat": oneOf("sha1", "sha256"), "refstorage": oneOf("files", "reftable"),
		"worktreeconfig": boolean, "partialclone": anyValue, "relativeworktrees": boolean, "noop": anyValue},
	"remote.": {"url": place, "pushurl": place, "fetch": anyValue, "push": anyValue, "tagopt": oneOf("--tags", "--no-tags"), "prune": boolean,
		"prunetags": boolean, "mirror": boolean, "skipdefaultupdate": boolean, "skipfetchall": boolean, "promisor": boolean,
		"partialclonefilter": anyValue, "gh-resolved": anyValue, "followremotehead": anyValue},
	"branch.": {"remote": place, "pushremote": place, "merge": anyValue, "rebase": anyValue, "description": anyValue, "gh-merge-base": anyValue,
		"vscode-merge-base": anyValue},
	"branch": {"autosetupmerge": anyValue, "autosetuprebase": anyValue, "sort": anyValue},
	"submodule.": {"url": place, "active": boolean, "path": relative, "branch": anyValue, "ignore": anyValue, "shallow": boolean,
		"fetchrecursesubmodules": anyValue, "update": oneOf("checkout", "rebase", "merge", "none")},
	"submodule":   {"active": anyValue, "recurse": boolean, "propagatebranches": boolean},
	"user":        {"name": anyValue, "email": anyValue, "useconfigonly": boolean},
	"author":      {"name": anyValue, "email": anyValue},
	"committer":   {"name": anyValue, "email": anyValue},
	"init":        {"defaultbranch": anyValue},
	"index":       {"sparse": boolean, "version": number},
	"pull":        {"rebase": anyValue, "ff": anyValue, "octopus": anyValue},
	"push":        {"default": anyValue, "autosetupremote": boolean, "followtags": boolean},
	"fetch":       {"prune": boolean, "prunetags": boolean, "parallel": number},
	"merge":       {"ff": anyValue, "conflictstyle": anyValue, "renames": anyValue, "stat": boolean, "autostash": boolean},
	"rebase":      {"autostash": boolean, "autosquash": boolean, "updaterefs": boolean},
	"rerere":      {"enabled": boolean, "autoupdate": boolean},
	"commit":      {"verbose": anyValue, "cleanup": anyValue},
	"status":      {"short": boolean, "branch": boolean, "showuntrackedfiles": anyValue},
	"log":         {"date": anyValue, "decorate": anyValue, "follow": boolean},
	"diff":        {"renames": anyValue, "algorithm": anyValue, "colormoved": anyValue, "noprefix": boolean},
	"gc":          {"auto": number, "autodetach": boolean, "pruneexpire": anyValue},
	"maintenance": {"auto": boolean},
	"lfs":         {"repositoryformatversion": number},
}

// relative accepts a path that stays below where it starts.
func relative(v string) bool {
	return v != "" && !strings.HasPrefix(v, "/") && !strings.HasPrefix(v, "-") && !slices.Contains(strings.Split(v, "/"), "..")
}

func harmless(e Entry, inside func(string) bool) bool {
	if e.Section == "color" || e.Section == "advice" {
		return true
	}
	section := e.Section
	if e.Sub != "" {
		section += "."
	}
	check, ok := harmlessKeys[section][e.Key]
	if !ok {
		return false
	}
	if check == nil { // core.worktree: where a checkout writes
		return inside(e.Value)
	}
	return check(e.Value)
}

// parseConfig reads what git reads, and refuses what two readers could take
// differently: continued lines, dotted sections, control characters.
func parseConfig(text []byte) ([]Entry, error) {
	if len(text) > ConfigLimit {
		return nil, fmt.Errorf("more than %d bytes", ConfigLimit)
	}
	var all []Entry
	section, sub := "", ""
	n := 0
	for line := range bytes.Lines(text) {
		n++
		s := strings.TrimSuffix(string(line), "\n")
		s = strings.TrimSuffix(s, "\r")
		if i := strings.IndexFunc(s, func(r rune) bool { return r < 0x20 && r != '\t' || r == 0x7f || r == 0xfeff }); i >= 0 {
			return nil, fmt.Errorf("line %d: a control character", n)
		}
		s = strings.Trim(s, " \t")
		switch {
		case s == "" || s[0] == '#' || s[0] == ';':
		case s[0] == '[':
			var err error
			if section, sub, err = parseSection(s); err != nil {
				return nil, fmt.Errorf("line %d: %w", n, err)
			}
		default:
			if section == "" {
				return nil, fmt.Errorf("line %d: no section before it", n)
			}
			key, value, err := parseEntry(s)
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", n, err)
			}
			all = append(all, Entry{Section: section, Sub: sub, Key: key, Value: value, line: n})
		}
	}
	return all, nil
}

func isName(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") == ""
}

// parseSection reads a header, which has its line to itself.
func parseSection(s string) (section, sub string, err error) {
	bad := fmt.Errorf("a section that is not [name] or [name \"sub\"] on a line of its own")
	body := strings.TrimPrefix(s, "[")
	name, rest, found := strings.Cut(body, `"`)
	if !found {
		name, closed := strings.CutSuffix(body, "]")
		if !closed || !isName(name) {
			return "", "", bad
		}
		return strings.ToLower(name), "", nil
	}
	name = strings.TrimRight(name, " \t")
	if !isName(name) {
		return "", "", bad
	}
	var b strings.Builder
	for i := 0; i < len(rest); i++ {
		switch c := rest[i]; c {
		case '\\':
			i++
			if i == len(rest) || rest[i] != '"' && rest[i] != '\\' {
				return "", "", bad
			}
			b.WriteByte(rest[i])
		case '"':
			if rest[i+1:] != "]" || b.Len() == 0 {
				return "", "", bad
			}
			return strings.ToLower(name), b.String(), nil
		default:
			b.WriteByte(c)
		}
	}
	return "", "", bad
}

// parseEntry reads "key" or "key = value" with git's quotes and escapes. An
// entry without a value is "true", as git has it.
func parseEntry(s string) (key, value string, err error) {
	end := strings.IndexAny(s, "= \t#;")
	if end < 0 {
		end = len(s)
	}
	key = s[:end]
	if !isName(key) {
		return "", "", fmt.Errorf("not a key")
	}
	rest := strings.TrimLeft(s[end:], " \t")
	if rest == "" || rest[0] == '#' || rest[0] == ';' {
		return strings.ToLower(key), "true", nil
	}
	if rest[0] != '=' {
		return "", "", fmt.Errorf("no = after the key")
	}
	rest = strings.TrimLeft(rest[1:], " \t")
	return parseValue(strings.ToLower(key), rest)
}

// parseValue reads a value that is in quotes as a whole or not at all: versions of
// git differ in the spaces of any other.
func parseValue(key, rest string) (string, string, error) {
	body, quoted := strings.CutPrefix(rest, `"`)
	var b strings.Builder
	kept := 0 // spaces at the end count only when quoted
	for i := 0; i < len(body); i++ {
		c := body[i]
		switch {
		case c == '"' && quoted:
			if after := strings.TrimLeft(body[i+1:], " \t"); after != "" && after[0] != '#' && after[0] != ';' {
				return "", "", fmt.Errorf("a value that is partly in quotes")
			}
			return key, b.String(), nil
		case c == '"':
			return "", "", fmt.Errorf("a value that is partly in quotes")
		case c == '\\':
			i++
			if i == len(body) {
				return "", "", fmt.Errorf("the line goes on in the next one")
			}
			plain, ok := map[byte]byte{'n': '\n', 't': '\t', 'b': '\b', '"': '"', '\\': '\\'}[body[i]]
			if !ok {
				return "", "", fmt.Errorf("unknown escape")
			}
			b.WriteByte(plain)
			kept = b.Len()
		case !quoted && (c == '#' || c == ';'):
			return key, b.String()[:kept], nil
		case !quoted && (c == ' ' || c == '\t'):
			b.WriteByte(c)
		default:
			if strings.Contains(b.String()[kept:], "\t") && !quoted {
				return "", "", fmt.Errorf("a tab within a value, which versions of git read differently")
			}
			b.WriteByte(c)
			kept = b.Len()
		}
	}
	if quoted {
		return "", "", fmt.Errorf("a quote is not closed")
	}
	return key, b.String()[:kept], nil
}
