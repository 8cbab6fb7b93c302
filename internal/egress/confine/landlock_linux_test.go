package confine

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
)

func init() { childproc.Register("confine-sigio", sigioMain) }

// sigioMain has the kernel send a signal to its parent when bytes arrive:
// fcntl is allowed by the filter, so only Landlock's scope refuses it.
func sigioMain() int {
	c, err := net.Dial("tcp", os.Args[1])
	if err == nil && os.Args[2] == "confined" {
		err = Apply()
	}
	if err != nil {
		fmt.Println(err)
		return 2
	}
	raw, _ := c.(*net.TCPConn).SyscallConn()
	parent, _ := strconv.Atoi(os.Args[3])
	raw.Control(func(fd uintptr) {
		for _, set := range [][2]int{{unix.F_SETOWN, parent}, {unix.F_SETSIG, int(unix.SIGUSR2)}, {unix.F_SETFL, unix.O_ASYNC | unix.O_NONBLOCK}} {
			if _, err := unix.FcntlInt(fd, set[0], set[1]); err != nil {
				fmt.Println(err)
			}
		}
	})
	c.Write([]byte("x"))
	c.Read(make([]byte, 1))
	return 0
}

// TestSignalsReachNobody proves Landlock by itself: everything else that it
// refuses, the filter refuses too.
func TestSignalsReachNobody(t *testing.T) {
	if abi, err := ll.LandlockGetABIVersion(); err != nil || abi < 6 {
		t.Skipf("Landlock ABI %d (%v) does not scope signals; not proven in this run: Landlock in the gateway", abi, err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan os.Signal, 8)
	signal.Notify(got, syscall.SIGUSR2)
	defer signal.Stop(got)
	for _, how := range []string{"free", "confined"} {
		cmd := &exec.Cmd{Path: childproc.Self(), Args: []string{childproc.Argv0("confine-sigio"), l.Addr().String(), how, strconv.Itoa(os.Getpid())}}
		var said strings.Builder
		cmd.Stdout = &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.Read(make([]byte, 1)) // it is prepared
		c.Write([]byte("x"))
		if err := cmd.Wait(); err != nil {
			t.Fatalf("%s: %v %s", how, err, said.String())
		}
		c.Close()
		arrived := false
		select {
		case <-got:
			arrived = true
		case <-time.After(300 * time.Millisecond):
		}
		if arrived != (how == "free") {
			t.Errorf("%s: a signal to the controller arrived: %v %s", how, arrived, said.String())
		}
		for len(got) > 0 {
			<-got
		}
	}
}
