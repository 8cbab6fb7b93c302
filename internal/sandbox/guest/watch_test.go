//go:build linux

package guest

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
)

func stat(t *testing.T, proc, pid, name, began, exe string) {
	t.Helper()
	dir := proc + "/" + pid
	for _, err := range []error{
		os.MkdirAll(dir, 0o755),
		os.WriteFile(dir+"/stat", []byte(pid+" ("+name+") S 1 2 3 4 5 6 7 8 9 10 100 50 25 25 15 16 17 18 "+began+" 20"), 0o644),
		os.Symlink(exe, dir+"/exe"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func kinds(s *sights) (all []sandbox.SeenKind) {
	s.flush(func(r report, _ ...*os.File) {
		for _, x := range r.Sights {
			all = append(all, x.What)
		}
	})
	return all
}

// TestSights: a process is told once when it is there and once when it is gone; a
// name with a parenthesis in it moves no field.
func TestSights(t *testing.T) {
	proc, s, now := t.TempDir(), newSights(), time.Now()
	stat(t, proc, "1", "guest", "1", "/guest")
	stat(t, proc, "7", "a) S 1 (b", "100", "/bin/a")
	s.look(proc, now)
	s.look(proc, now.Add(settled/2))
	if len(s.batch) != 1 || s.batch[0].PID != 7 || string(s.batch[0].Path) != "/bin/a" || string(s.batch[0].Name) != "a) S 1 (b" {
		t.Fatalf("%+v", s.batch)
	}
	kinds(s)
	os.RemoveAll(proc + "/7")
	stat(t, proc, "8", "b", "100", "/bin/b")
	s.look(proc, now.Add(settled))
	if got := kinds(s); len(got) != 2 || got[0] != sandbox.SeenExec || got[1] != sandbox.SeenExit {
		t.Fatalf("%v", got)
	}
	for range 3 * maxSights {
		s.opened("/same")
	}
	if got := kinds(s); len(got) != 1 {
		t.Fatalf("one file: %v", got)
	}
	for i := range 2 * maxSights {
		s.opened(string(rune('a'+i%26)) + "/" + time.Duration(i).String())
	}
	if len(s.batch) != maxSights || s.lost != maxSights {
		t.Fatalf("%d told and %d counted", len(s.batch), s.lost)
	}
}

func TestProcessorTime(t *testing.T) {
	proc := t.TempDir()
	stat(t, proc, "1", "guest", "1", "/guest")
	stat(t, proc, "7", "x)", "1", "/x")
	// 25+25 of those that pid 1 waited for; 100+50+25+25 of the other.
	if got, want := processorTime(os.DirFS(proc)), 250*time.Second/100; got != want {
		t.Errorf("%v, not %v", got, want)
	}
	if got := ticks([]byte("7 (x"), false); got != 0 {
		t.Errorf("of half a line: %v", got)
	}
}

func TestTasks(t *testing.T) {
	proc := t.TempDir()
	stat(t, proc, "1", "guest", "1", "/guest")
	stat(t, proc, "7", "x) R 1", "1", "/x")
	os.Mkdir(proc+"/self", 0o755)
	if got := tasks(os.DirFS(proc)); got != 2*17 { // as many threads as the field's number says
		t.Errorf("%d", got)
	}
}

func TestFullProcess(t *testing.T) {
	proc := t.TempDir()
	for name, open := range map[string]int{"1": 9, "7": 2, "8": 3, "self": 9} {
		if err := os.MkdirAll(filepath.Join(proc, name, "fd"), 0o755); err != nil {
			t.Fatal(err)
		}
		os.WriteFile(filepath.Join(proc, name, "comm"), []byte("p"+name+"\n"), 0o644)
		for i := range open {
			os.WriteFile(filepath.Join(proc, name, "fd", strconv.Itoa(i)), nil, 0o644)
		}
	}
	for most, want := range map[int]string{3: "p8", 4: ""} {
		if got := fullProcess(proc, most); string(got) != want {
			t.Errorf("with %d: %q, want %q", most, got, want)
		}
	}
}
