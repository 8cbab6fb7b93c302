package policy

import (
	"strings"
	"testing"

	catalogdata "github.com/bulkhead-dev/bulkhead/catalog"
)

// TestTrustList: each entry of the embedded list says what it is for, and each
// class has some.
func TestTrustList(t *testing.T) {
	list, err := ParseTrust(catalogdata.Trust)
	if err != nil {
		t.Fatal(err)
	}
	classes := map[TrustClass]int{}
	for _, p := range list {
		classes[p.Class]++
		if p.Can == "" || p.Owner == "" || p.Pos.Line == 0 {
			t.Errorf("%+v says too little", p)
		}
	}
	for _, c := range []TrustClass{TrustRuns, TrustWidens, TrustInstructs} {
		if classes[c] < 5 {
			t.Errorf("%d of class %s", classes[c], c)
		}
	}
}

func TestTrustListErrors(t *testing.T) {
	for text, want := range map[string]string{
		"runs: {A: {x: y}}": "widens is missing",
		"runs: {A: {../x: y}}\nwidens: {}\ninstructs: {}":    "not a clean path",
		"runs: {A: {a/**/b: y}}\nwidens: {}\ninstructs: {}":  "not a clean path",
		"runs: {A: {x: ''}}\nwidens: {}\ninstructs: {}":      "empty",
		"runs: {}\nwidens: {}\ninstructs: {}\nelse: {}":      "unknown key",
		"runs: {A: {x: y, x: z}}\nwidens: {}\ninstructs: {}": "second time",
	} {
		if _, err := ParseTrust([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
