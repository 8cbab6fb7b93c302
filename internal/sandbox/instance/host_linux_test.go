package instance

import (
	"strings"
	"testing"
)

// TestExplain: the backend's own remedies come first, and every error that is known
// says what to do.
func TestExplain(t *testing.T) {
	own := Remedy{[]string{"mounting the image"}, "load it: sudo modprobe overlay"}
	for text, want := range map[string]string{
		"bwrap: Creating new namespace failed: Resource temporarily unavailable":                                       "kernel.pid_max",
		"runtime: failed to create new OS thread (have 9 already; errno=11)\nfatal error: newosproc\n\nruntime stack:": "kernel.pid_max",
		"bwrap: Creating new namespace failed: No space left on device":                                                "max_user_namespaces=100000",
		"bwrap: setting up uid map: Invalid argument":                                                                  "bulkhead doctor",
		"mounting the image: no space left on device":                                                                  "modprobe overlay",
		"something else": "",
	} {
		err := Explain(" "+text+"\n", own)
		if strings.Contains(text, "newosproc") {
			text = noRoom
		}
		if strings.Contains(err.Error(), "newosproc") || !strings.Contains(err.Error(), text) || want != "" && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
		if want == "" && strings.Contains(err.Error(), "\n") {
			t.Errorf("%q has a remedy: %v", text, err)
		}
	}
}

func TestCrowded(t *testing.T) {
	for _, c := range []struct {
		loadavg, most string
		want          bool
	}{
		{"0.20 0.18 0.12 1/1480 11206", "1500", true},
		{"0.20 0.18 0.12 1/80 11206", "32768", false},
		{"", "32768", false},
		{"0.20 0.18 0.12 1/80 11206", "", false},
	} {
		if got := crowded(c.loadavg, c.most); got != c.want {
			t.Errorf("%q of %q: %v", c.loadavg, c.most, got)
		}
	}
}
