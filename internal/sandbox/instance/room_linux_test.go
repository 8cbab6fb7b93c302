package instance

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const roomUser = "BULKHEAD_TEST_ROOM"

// TestCheckRoom: a user's limit is seen before anything dies of it, and the error names
// it and the remedy. The test is a process of a user whom nobody else has.
func TestCheckRoom(t *testing.T) {
	if os.Getenv(roomUser) != "" {
		roomChild(t)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user; not proven in this run: that a user's limit on processes is seen before the start")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestCheckRoom$")
	cmd.Env = append(os.Environ(), roomUser+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func roomChild(t *testing.T) {
	const uid = 61237
	if err := syscall.Setresuid(uid, uid, uid); err != nil {
		t.Fatal(err)
	}
	if err := CheckRoom(24); err != nil {
		t.Fatalf("with room: %v", err)
	}
	if n := tasksOf("/proc", uid); n < 2 || n > 40 {
		t.Fatalf("%d threads of this process", n)
	}
	limit := uint64(tasksOf("/proc", uid) + 23)
	if err := unix.Setrlimit(unix.RLIMIT_NPROC, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
		t.Fatal(err)
	}
	err := CheckRoom(24 + 40)
	if err == nil || !strings.Contains(err.Error(), "ulimit -u") || !strings.Contains(err.Error(), "leaves room for") {
		t.Fatalf("without room: %v", err)
	}
	if err := CheckRoom(1); err != nil {
		t.Fatalf("room enough: %v", err)
	}
}
