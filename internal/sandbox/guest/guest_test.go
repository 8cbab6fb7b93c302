//go:build linux

package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest/frame"
)

// A supervisor that lies: whatever it says, the controller ends the
// conversation with an error, keeps no descriptor and does not hang.
func TestHostileSupervisor(t *testing.T) {
	file, err := os.Create(t.TempDir() + "/f")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	elsewhere, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer elsewhere.Close()
	listener, _ := elsewhere.(*net.TCPListener).File()
	defer listener.Close()
	ready := report{Kind: kindReady}
	for name, c := range map[string]struct {
		relay int
		ports []int
		say   []report
		file  *os.File // with the last
	}{
		"ready twice":                 {say: []report{ready, ready}},
		"ready with a device":         {say: []report{{Kind: kindReady, Devices: []uint64{1}}}},
		"ready with a file":           {say: []report{ready}, file: file},
		"a file for a listener":       {relay: 3128, say: []report{ready}, file: file},
		"another listener":            {relay: 3128, say: []report{ready}, file: listener},
		"no listener":                 {relay: 3128, say: []report{ready}},
		"no port":                     {ports: []int{8080}, say: []report{ready}},
		"a file for a port":           {ports: []int{8080}, say: []report{ready}, file: file},
		"another port":                {ports: []int{8080}, say: []report{ready}, file: listener},
		"a port in the relay's place": {relay: 3128, ports: []int{8080}, say: []report{ready}, file: listener},
		"dialed unasked":              {say: []report{ready, {Kind: kindDialed, ID: 1}}, file: listener},
		"closed unasked":              {say: []report{ready, {Kind: kindClosed, ID: 1}}},
		"failed":                      {say: []report{{Kind: kindFailed, Error: "\x1b]0;evil\x07"}}},
		"failed after ready":          {say: []report{ready, {Kind: kindFailed}}},
		"exit of nobody":              {say: []report{ready, {Kind: kindExited, ID: 7}}},
		"start of nobody":             {say: []report{ready, {Kind: kindStarted, ID: 1}}},
		"unknown":                     {say: []report{ready, {Kind: "exec"}}},
		"file for a started command":  {say: []report{ready, {Kind: kindStarted, ID: 1}}, file: file},
		"exit code 256":               {say: []report{ready, {Kind: kindExited, ID: 1, Code: 256}}},
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs, err := frame.Pair()
			if err != nil {
				t.Fatal(err)
			}
			liar, err := frame.New(theirs)
			if err != nil {
				t.Fatal(err)
			}
			defer liar.Close()
			client := NewClient(ours, Setup{RelayPort: c.relay, Ports: c.ports}, nil, nil)
			go func() {
				for i, r := range c.say {
					var fs []*os.File
					if c.file != nil && i == len(c.say)-1 {
						fs = append(fs, c.file)
					}
					liar.Send(time.Now().Add(time.Second), r, fs...)
				}
			}()
			select {
			case <-client.Done():
			case <-time.After(5 * time.Second):
				t.Fatal("the conversation goes on")
			}
			if err := client.Err(); err == nil || strings.ContainsAny(err.Error(), "\x1b\x07") {
				t.Errorf("error %q", err)
			}
			if _, err := client.Start(context.Background(), sandbox.Command{Argv: []string{"true"}, Dir: "/"}); !errors.Is(err, sandbox.ErrGone) {
				t.Errorf("start afterwards: %v", err)
			}
		})
	}
}

// A file in the place of a terminal is refused when a command asked for one.
func TestHostileTerminal(t *testing.T) {
	ours, theirs, _ := frame.Pair()
	liar, _ := frame.New(theirs)
	defer liar.Close()
	client := NewClient(ours, Setup{}, nil, nil)
	null, _ := os.OpenFile("/dev/null", os.O_RDWR, 0)
	defer null.Close()
	go func() {
		liar.Send(time.Time{}, report{Kind: kindReady})
		for {
			var r request
			if _, err := liar.Receive(&r, frame.MaxPayload, 3); err != nil {
				return
			}
			if r.Start != nil {
				liar.Send(time.Time{}, report{Kind: kindStarted, ID: r.Start.ID}, null)
			}
		}
	}()
	if _, err := client.Ready(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Start(context.Background(), sandbox.Command{Argv: []string{"sh"}, Dir: "/", Terminal: true}); err == nil {
		t.Fatal("accepted /dev/null as a terminal")
	}
}

// What is not a connection between two ends of a loopback is refused when one was
// asked for, and a true one is carried.
func TestHostileConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	listener, _ := l.(*net.TCPListener).File()
	defer listener.Close()
	null, _ := os.OpenFile("/dev/null", os.O_RDWR, 0)
	defer null.Close()
	udp, err := net.Dial("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	datagrams, _ := udp.(*net.UDPConn).File()
	defer datagrams.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	connection, _ := near.(*net.TCPConn).File()
	defer connection.Close()
	gone, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer gone.Close()
	for {
		other, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		if other.RemoteAddr().String() == gone.LocalAddr().String() {
			other.(*net.TCPConn).SetLinger(0) // closing resets
			other.Close()
			break
		}
	}
	reset, _ := gone.(*net.TCPConn).File()
	defer reset.Close()
	for name, c := range map[string]struct {
		file *os.File
		good bool // a connection
		fair bool // no reason to end the sandbox
	}{
		"listener": {listener, false, false}, "device": {null, false, false}, "datagrams": {datagrams, false, false},
		"connection": {connection, true, true}, "reset": {reset, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs, _ := frame.Pair()
			liar, _ := frame.New(theirs)
			defer liar.Close()
			client := NewClient(ours, Setup{}, nil, nil)
			go func() {
				liar.Send(time.Time{}, report{Kind: kindReady})
				for {
					var r request
					if _, err := liar.Receive(&r, frame.MaxPayload, 3); err != nil {
						return
					}
					if r.Dial != nil {
						liar.Send(time.Time{}, report{Kind: kindDialed, ID: r.Dial.ID}, c.file)
					}
				}
			}()
			if _, err := client.Ready(context.Background()); err != nil {
				t.Fatal(err)
			}
			conn, err := client.Dial(context.Background(), 80)
			if (err == nil) != c.good {
				t.Fatalf("%v, %v", conn, err)
			}
			if conn != nil {
				conn.Close()
			}
			if c.fair {
				client.Close()
			}
			<-client.Done()
			if err := client.Err(); strings.Contains(err.Error(), "broke the protocol") == c.fair {
				t.Fatalf("the conversation ended with %v", err)
			}
		})
	}
}

// One that never answers: a start ends with its context.
func TestSilentSupervisor(t *testing.T) {
	ours, theirs, _ := frame.Pair()
	defer theirs.Close()
	client := NewClient(ours, Setup{}, nil, nil)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := client.Ready(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ready: %v", err)
	}
	client.Close()
	<-client.Done()
}

func FuzzReport(f *testing.F) {
	f.Add([]byte(`{"kind":"started","id":1}`), 0, true)
	f.Add([]byte(`{"kind":"exited","id":2,"code":3}`), 1, false)
	f.Fuzz(func(t *testing.T, b []byte, files int, relay bool) {
		var r report
		if frame.Decode(b, &r) != nil {
			return
		}
		x := exchange{relay: relay, ready: true, commands: map[uint32]*commandState{1: {terminal: true}, 2: {running: true}}, dials: map[uint32]bool{3: true}}
		if x.judge(r, files) != nil {
			return
		}
		switch {
		case r.Kind == kindStarted && r.ID == 1 && files == 1:
		case r.Kind == kindRefused && r.ID == 1 && files == 0:
		case r.Kind == kindDialed && r.ID == 3 && files == 1:
		case r.Kind == kindClosed && r.ID == 3 && files == 0:
		case (r.Kind == kindStopped || r.Kind == kindExited && r.Code >= 0 && r.Code < 256) && r.ID == 2 && files == 0:
		default:
			t.Fatalf("accepted %+v with %d descriptors", r, files)
		}
	})
}

// FuzzForeignReport: where no descriptor comes out, none is taken, and what
// arrives is bounded and for a listener that was asked for.
func FuzzForeignReport(f *testing.F) {
	f.Add([]byte(`{"kind":"started","id":1,"modes":{}}`), 0)
	f.Add([]byte(`{"kind":"modes","id":1,"modes":{"Lflag":2}}`), 0)
	f.Add([]byte(`{"kind":"arrived","id":9,"port":3128}`), 0)
	f.Add([]byte(`{"kind":"arrived","id":4,"port":3128}`), 1)
	f.Fuzz(func(t *testing.T, b []byte, files int) {
		var r report
		if frame.Decode(b, &r) != nil {
			return
		}
		x := exchange{foreign: true, ready: true, listens: func(port int) bool { return port == 3128 },
			commands: map[uint32]*commandState{1: {terminal: true}, 2: {running: true}}, dials: map[uint32]bool{3: true}, arrived: map[uint32]bool{4: true}}
		if x.judge(r, files) != nil {
			return
		}
		switch {
		case files != 0:
		case r.Kind == kindStarted && r.ID == 1 && r.Modes != nil, r.Kind == kindRefused && r.ID == 1:
			return
		case (r.Kind == kindDialed || r.Kind == kindClosed) && r.ID == 3, r.Kind == kindModes && r.Modes != nil && r.ID != 2:
			return
		case r.Kind == kindArrived && r.ID != 4 && r.Port == 3128 && len(x.arrived) == 2:
			return
		case (r.Kind == kindStopped || r.Kind == kindExited && r.Code >= 0 && r.Code < 256) && r.ID == 2:
			return
		}
		t.Fatalf("accepted %+v with %d descriptors", r, files)
	})
}

// TestArrivalsAreBounded: a sandbox cannot make the controller hold sockets
// without end.
func TestArrivalsAreBounded(t *testing.T) {
	x := exchange{foreign: true, ready: true, listens: func(int) bool { return true }, arrived: map[uint32]bool{}}
	for n := range uint32(maxWaiting) {
		if err := x.judge(report{Kind: kindArrived, ID: n, Port: 1}, 0); err != nil {
			t.Fatal(err)
		}
	}
	if x.judge(report{Kind: kindArrived, ID: maxWaiting, Port: 1}, 0) == nil {
		t.Error("one more was taken")
	}
}

func FuzzRecord(f *testing.F) {
	f.Add(record(jobStarted, 7, ""))
	f.Add(record(jobRefused, 5|jobNotFound, "hello"))
	f.Add([]byte{jobRefused, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		kind, n, text, err := readRecord(bytes.NewReader(b))
		if err == nil && !bytes.HasPrefix(b, record(kind, n, text)) {
			t.Fatalf("%q read as %c %d %q", b, kind, n, text)
		}
	})
}

func FuzzRequest(f *testing.F) {
	seed, _ := json.Marshal(request{Start: &start{ID: 1, Argv: [][]byte{[]byte("a")}, Dir: []byte("/")}})
	f.Add(seed)
	f.Fuzz(func(t *testing.T, b []byte) {
		var r request
		if frame.Decode(b, &r) == nil && r.Start != nil && r.Start.validate() == nil {
			for _, c := range candidates(string(r.Start.Argv[0]), string(r.Start.Dir), stringsOf(r.Start.Env)) {
				if c[0] != '/' || strings.ContainsRune(c, 0) {
					t.Fatalf("candidate %q", c)
				}
			}
		}
	})
}

func FuzzClean(f *testing.F) {
	f.Add("\x1b[31m\u202e\xff")
	f.Fuzz(func(t *testing.T, s string) {
		if c := clean(s); strings.ContainsAny(c, "\x1b\x00\r\n\u202e\u200b") || len([]rune(c)) > maxText+1 {
			t.Fatalf("%q", c)
		}
	})
}
