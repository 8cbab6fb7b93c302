package policy

import (
	"strings"
	"testing"
)

func TestCloudSources(t *testing.T) {
	p, err := Parse("p.yaml", []byte("version: 1\ncredentials:\n  a: {from: {aws: work@corp}}\n  g: {from: {google: adc}}\n  z: {from: {azure: storage}, optional: true}\n"))
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse("p.yaml", p.YAML())
	if err != nil || len(again.Credentials) != 3 || again.Credentials[0].AWS != "work@corp" || again.Credentials[1].Google != "adc" || again.Credentials[2].Azure != "storage" {
		t.Fatalf("%+v, %v\n%s", again, err, p.YAML())
	}
	for text, want := range map[string]string{
		"credentials: {a: {from: {aws: ../x}}}":                                                  `"../x" is not a source of aws`,
		"credentials: {a: {from: {google: key.json}}}":                                           "adc",
		"credentials: {a: {from: {azure: everything}}}":                                          "management, openai or storage",
		"credentials: {a: {from: {aws: default, google: adc}}}":                                  "exactly one source",
		"env: {pass: [AWS_SECRET_ACCESS_KEY]}\ncredentials: {a: {from: {aws: work}}}":            "AWS_SECRET_ACCESS_KEY",
		"env: {pass: [AZURE_CLIENT_SECRET]}\ncredentials: {a: {from: {azure: openai}}}":          "AZURE_CLIENT_SECRET",
		"env: {pass: [GOOGLE_APPLICATION_CREDENTIALS]}\ncredentials: {a: {from: {google: adc}}}": "GOOGLE_APPLICATION_CREDENTIALS",
	} {
		if _, err := Parse("p.yaml", []byte("version: 1\n"+text+"\n")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
