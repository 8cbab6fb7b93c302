package policy

import (
	"strings"
	"testing"
)

func TestEnvFiles(t *testing.T) {
	src := "version: 1\nenv:\n  files:\n    ~/.tool/./a.json: '{\"in\": \"${WORKSPACE}\", \"key\": \"${KEY: -3}\", \"whole\": \"${KEY}\"}'\n"
	p, err := Parse("p.yaml", []byte(src))
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse("p.yaml", p.YAML())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []*Policy{p, again} {
		if len(p.EnvFiles) != 1 || p.EnvFiles[0].Name != "~/.tool/a.json" {
			t.Fatalf("%+v", p.EnvFiles)
		}
		got, _ := p.EnvFiles[0].ExpandFile(func(name string) string {
			return map[string]string{"WORKSPACE": `/a "b"`, "KEY": "secret"}[name]
		})
		if want := `{"in": "/a \"b\"", "key": "ret", "whole": "secret"}`; got != want {
			t.Errorf("%s, want %s", got, want)
		}
		if got, ok := p.EnvFiles[0].ExpandFile(func(string) string { return "" }); got != `{"in": "", "key": "", "whole": ""}` || !ok {
			t.Error(got, ok)
		}
		needed := EnvVar{Value: "a${KEY:?}"}
		if got, ok := needed.ExpandFile(func(string) string { return "b" }); got != "ab" || !ok {
			t.Error(got, ok)
		}
		if _, ok := needed.ExpandFile(func(string) string { return "" }); ok {
			t.Error("there is a file without what it needs")
		}
	}

	for bad, want := range map[string]string{
		`files: {/etc/passwd: x}`:    "is not in the private home",
		`files: {.claude.json: x}`:   "is not in the private home",
		`files: {~/: x}`:             "is not a file in the private home",
		`files: {~/../x: x}`:         "",
		`files: {~/a: 5}`:            "",
		`files: {~/a: [5]}`:          "must be text",
		`files: {~/a: {b: c}}`:       "",
		`files: {~/a: "${HOME:-x}"}`: "is not expanded",
		`files: {~/a: "$` + `{x}"}`:  "is not expanded",
		`files: [a]`:                 "",
		`files: {~/a: x, ~/a: y}`:    "second time",
	} {
		_, err := Parse("p.yaml", []byte("version: 1\nenv: {"+bad+"}\n"))
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "p.yaml:2:") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if _, err := ParseProject("p.yaml", []byte("version: 1\nenv: {files: {~/a: x}}\n")); err == nil {
		t.Error("a project's policy adds a file")
	}
}

func TestEnvFilesOfLines(t *testing.T) {
	p, err := Parse("p.yaml", []byte("version: 1\nenv:\n  files:\n    ~/a:\n      - 'one = \"x\"'\n      - ''\n      - one\n"))
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse("p.yaml", p.YAML())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []*Policy{p, again} {
		if got := p.EnvFiles[0].Value; got != "one = \"x\"\n\none\n" {
			t.Errorf("%q", got)
		}
	}
}

func TestPresetsFiles(t *testing.T) {
	presets := map[string]string{"a": "one", "b": "two"}
	lookup := func(name string) (*Preset, error) {
		return ParsePreset(name, []byte("description: d\nenv: {files: {~/f: "+presets[name]+"}}\n"))
	}
	expand := func(src string) (*Policy, error) {
		p, err := Parse("p.yaml", []byte("version: 1\n"+src))
		if err != nil {
			t.Fatal(err)
		}
		return Expand(p, lookup)
	}
	if p, err := expand("presets: [a]\n"); err != nil || len(p.EnvFiles) != 1 || p.EnvFiles[0].Value != "one" {
		t.Error(err)
	}
	if p, err := expand("presets: [a, b]\nenv: {files: {~/f: mine}}\n"); err != nil || len(p.EnvFiles) != 1 || p.EnvFiles[0].Value != "mine" {
		t.Error("the policy's own does not count", err)
	}
	if _, err := expand("presets: [a, b]\n"); err == nil || !strings.Contains(err.Error(), "other content") {
		t.Error("two presets that disagree:", err)
	}
}
