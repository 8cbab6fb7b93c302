package rules

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var list, _ = New([]Protected{
	{".git/hooks", "hooks"}, {".git/config", "config"}, {".git/objects/info/alternates", "alternates"}, {".vscode", "editor"}, {".claude/settings.json", "agent"},
	{"*.code-workspace", "editor"}, {"gradle/wrapper", "gradle"}, {".kshrc", "shell"},
	{"bin/python[0-9]*", "python"}, {"site-packages/*.pth", "python"},
}, []string{"node_modules", "site-packages"})

func split(p string) []string { return strings.Split(p, "/") }

func TestPlain(t *testing.T) {
	for p, want := range map[string]string{
		".vscode": "editor", "a/.vscode/x/y": "editor", ".VSCode": "editor", "x.code-workspace": "editor", "X.Code-Workspace/a": "editor", ".claude/settings.json": "agent",
		"a/.claude/SETTINGS.json": "agent", "gradle/wrapper/x": "gradle", ".\u212aSHRC": "shell", ".k\u017fhrc": "shell",
		"e/bin/python3": "python", "e/BIN/Python3.11": "python", "e/lib/site-packages/a.pth": "python", "e/bin/python-tool": "", "model.pth": "", "e/lib/site-packages/p/a.pth": "",
		"node_modules/e/bin/python3": "", "site-packages/p/.vscode": "",
		"vscode": "", ".claude": "", ".claude/x/settings.json": "", "gradle": "", ".git/hooks/x": "", "code-workspace": "",
		"node_modules/a/.vscode": "", "node_modules/.vscode/x": "", ".vscode/node_modules/x": "editor", "a/Node_Modules/.vscode": "", "\xff.vscode": "",
	} {
		if got, _ := list.Plain(split(p)); got != want {
			t.Errorf("%s: %q, want %q", p, got, want)
		}
	}
}

func TestGit(t *testing.T) {
	for p, want := range map[string]int{".git/hooks/x": 1, "a/b/HOOKS": 2, "hooks": 0, "x/objects/info/alternates": 1, "node_modules/p/.git/config": 3} {
		hits := list.Git(split(p))
		if len(hits) != 1 || hits[0].Dir != want {
			t.Errorf("%s: %+v, want one at %d", p, hits, want)
		}
	}
	if hits := list.Git(split("a/b/c")); hits != nil {
		t.Errorf("%+v", hits)
	}
}

func TestWays(t *testing.T) {
	for p, want := range map[string]int{".claude": 1, "a/.Claude": 1, "gradle": 1, "x/objects": 1, "x/objects/info": 1, "a": 0, ".vscode": 0, "node_modules/.claude": 0} {
		if ways := list.Ways(split(p)); len(ways) != want {
			t.Errorf("%s: %+v, want %d", p, ways, want)
		}
	}
	if _, err := New([]Protected{{"../x", ""}}, nil); err == nil {
		t.Error("a path upwards is taken")
	}
}

const own = "[core]\n\tbare = false\n\tsshCommand = mine\n[remote \"origin\"]\n\turl = https://a.example/x\n[branch \"main\"]\n\tremote = origin\n\tmerge = refs/heads/main\n"

func TestCheckConfig(t *testing.T) {
	inside := func(p string) bool { return strings.HasPrefix(p, "../") }
	for _, c := range []struct {
		after, before, want string // want "" means that it may change so
	}{
		{"[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n\tlogallrefupdates = true\n", "", ""},
		{own, own, ""}, {"[core]\n\tsparseCheckout = true\n\tsparseCheckoutCone = true\n[index]\n\tsparse = true\n", "", ""},
		{own + "[branch \"b\"]\n\tremote = x\n\tmerge = refs/heads/b\n[user]\n\tname = a b ; d\n", own, ""},
		{own + "[remote \"fork\"]\n\turl = git@b.example:y\n\tfetch = +refs/heads/*:refs/remotes/fork/*\n", own, ""},
		{strings.Replace(own, "[branch \"main\"]\n\tremote = origin\n\tmerge = refs/heads/main\n", "", 1), own, ""},
		{"[core]\n\tworktree = ../../../sub\n", "", ""}, {"[submodule \"s\"]\n\turl = /x/y\n\tactive = true\n\tupdate = rebase\n\tpath = a/b\n", "", ""},
		{own + "[core]\n\tfsmonitor = evil\n", own, "core.fsmonitor"},
		{strings.Replace(own, "mine", "evil", 1), own, "core.sshcommand"},
		{strings.Replace(own, "\tsshCommand = mine\n", "", 1), own, "remote.origin.url"}, {"[core]\n", "[core]\n\teditor = x\n", "core.editor is no longer there"},
		{strings.Replace(own, "a.example", "evil.example", 1), own, "remote.origin.url"},
		{own + "[remote \"origin\"]\n\turl = https://evil.example\n", own, "remote.origin.url"},
		{strings.Replace(own, "remote = origin", "remote = fork", 1), own, "branch.main.remote"},
		{own + "[remote \"x\"]\n\turl = ext::sh -c evil\n", own, "remote.x.url"}, {"[remote \"x\"]\n\turl = \"a\\nb\"\n", "", "remote.x.url"},
		{"[remote \"x\"]\n\turl = -oProxyCommand=evil\n", "", "remote.x.url"}, {"[remote \"x\"]\n\turl = \"ext:\\\n:sh\"\n", "", "goes on"},
		{"[remote \"x\"]\n\tuploadpack = evil\n", "", "uploadpack"}, {"[submodule \"s\"]\n\tupdate = !evil\n", "", "submodule.s.update"}, {"[submodule \"s\"]\n\tpath = ../x\n", "", "submodule.s.path"},
		{"[core]\n\tworktree = /etc\n", "", "core.worktree"}, {"[include]\n\tpath = x\n", "", "include.path"}, {"[includeIf \"gitdir:x\"]\n\tpath = x\n", "", "includeif"},
		{"[alias]\n\tx = !sh\n", "", "alias.x"}, {"[Core]\n\tHooksPath = x\n", "", "core.hookspath"}, {"[core]hookspath=x\n", "", "line of its own"}, {"[core \"\"]\n\tbare = true\n", "", "section"},
		{"[core.x]\n\ta = b\n", "", "section"}, {"a = b\n", "", "no section"}, {"[core]\n\tbare = \"x\n", "", "not closed"}, {"[core]\n\tbare = \\q\n", "", "escape"}, {"[core]\n\tb\x00 = 1\n", "", "control"},
		{"\xef\xbb\xbf[core]\n", "", "control"}, {"[core]\n\tlogallrefupdates\n", "", ""}, {"[core]\n\teditor\n", "", "core.editor"}, {"[diff \"x\"]\n\ttextconv = evil\n", "", "diff.x.textconv"},
		{"[core]\n\tbare = false\n", "[core\n", "not understood"},
	} {
		var before []byte
		if c.before != "" {
			before = []byte(c.before)
		}
		err := CheckConfig([]byte(c.after), before, inside)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("from %q to %q: %v, want %q", c.before, c.after, err, c.want)
		}
	}
}

// Whatever is accepted, git itself reads nothing else in it than we did.
func TestGitReadsTheSame(t *testing.T) {
	for _, text := range []string{own, "[user]\n\tname = \"a # b\"\t ; d\n\temail = a b ; c\n", "[color \"x\\\"y\\\\z\"]\n\tUI=always # x\n", "[user]\r\n name = a\r\n", "[advice]\nx\n", "[user]\n\tname =   \n\temail=a\\tb\n", "; c\n[advice] # x\n"} {
		comparesWithGit(t, []byte(text))
	}
}

func comparesWithGit(t *testing.T, text []byte) {
	entries, err := parseConfig(text)
	if err != nil {
		return
	}
	file := filepath.Join(t.TempDir(), "c")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("git", "config", "--file", file, "--no-includes", "--list", "-z").Output()
	if err != nil {
		return // git takes nothing of it
	}
	var want []string
	for _, e := range entries {
		name := e.Section + "." + e.Key
		if e.Sub != "" {
			name = e.Section + "." + e.Sub + "." + e.Key
		}
		want = append(want, name+"\n"+e.Value)
	}
	var got []string
	if len(out) > 0 {
		got = strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
	}
	for i, g := range got {
		if !strings.Contains(g, "\n") { // a key without a value
			got[i] = g + "\ntrue"
		}
	}
	if g, w := strings.Join(got, "\x00"), strings.Join(want, "\x00"); g != w {
		t.Errorf("of %q git reads %q, we read %q", text, g, w)
	}
}

// Nothing panics, and what may change once may stay.
func FuzzConfig(f *testing.F) {
	for _, s := range []string{own, "[a \"b\"]\nc = \"d\\n\" # e\n", "[core]\n\tbare\n", "[x"} {
		f.Add([]byte(s), []byte(own))
	}
	f.Fuzz(func(t *testing.T, after, before []byte) {
		no := func(string) bool { return false }
		if CheckConfig(after, before, no) == nil && CheckConfig(after, after, no) != nil {
			t.Errorf("%q is accepted and then is not", after)
		}
		if entries, err := parseConfig(after); err == nil && CheckConfig(after, nil, no) == nil {
			for _, e := range entries {
				if !harmless(e, no) {
					t.Errorf("%s came in with %q", e.name(), after)
				}
			}
		}
	})
}

// What git reads in an accepted configuration is what was judged.
func FuzzConfigAsGit(f *testing.F) {
	f.Add([]byte(own))
	f.Add([]byte("[a \"b\\\"c\"]\nd = \"e\\t\" f ; g\nh\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) < 4096 {
			comparesWithGit(t, text)
		}
	})
}

func FuzzNames(f *testing.F) {
	f.Add(".git/hooks/x")
	f.Add("a/.VSCODE\xff/b")
	f.Add("node_modules/x/a.code-workspace/modules/m/hooks")
	f.Fuzz(func(t *testing.T, p string) {
		rel := split(p)
		_, low := list.Plain(split(strings.ToLower(p)))
		if _, got := list.Plain(rel); got != low && strings.EqualFold(strings.ToUpper(p), strings.ToLower(p)) {
			t.Errorf("%q is judged by its case", p)
		}
		list.Ways(rel)
		// However they are found, it is those that match.
		f, end := folded(rel), len(rel)
		if i := slices.IndexFunc(f, func(e string) bool { return list.installed[e] }); i >= 0 {
			end = i + 1
		}
		count := func(all []pattern, end int) (n int) {
			for _, p := range all {
				for i := 0; i < end && i+len(p.elems) <= len(f); i++ {
					if matches(p.elems, f[i:i+len(p.elems)]) {
						n++
					}
				}
			}
			return n
		}
		if _, got := list.Plain(rel); got != (count(list.plain.all, end) > 0) {
			t.Errorf("%q: protected %v", p, got)
		}
		if got, want := len(list.Git(rel)), count(list.git.all, len(f)); got != want {
			t.Errorf("%q: %d places of git's, not %d", p, got, want)
		}
	})
}
