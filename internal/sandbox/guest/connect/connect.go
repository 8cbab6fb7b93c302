// Package connect carries one connection of a program that knows no proxy, ssh
// above all, to the relay.
//
// It runs inside the sandbox, as an ordinary command of it (childproc
// "connect", started by ssh's ProxyCommand with HOST and PORT as arguments),
// and has no privilege: it asks the relay on the sandbox's loopback for
// HOST:PORT as any program may, and copies its standard input and output. What
// the relay refuses it says on standard error, with exit code 1.
package connect

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
)

// Child is the name of the child process.
const Child = "connect"

func init() { childproc.Register(Child, main) }

const answerTime = 15 * time.Second

func main() int {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "bulkhead: connect takes a host and a port; ssh starts it")
		return 1
	}
	dst, err := hostport.Parse(net.JoinHostPort(os.Args[1], os.Args[2]))
	if err == nil {
		err = run(fmt.Sprintf("127.0.0.1:%d", sandbox.RelayPort), dst, os.Stdin, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// run connects in to out over the relay until the other side ends.
func run(relay string, dst hostport.HostPort, in io.Reader, out io.Writer) error {
	conn, err := net.DialTimeout("tcp", relay, answerTime)
	if err != nil {
		return errors.New("bulkhead: the relay does not answer")
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(answerTime))
	if _, err := fmt.Fprintf(conn, "CONNECT %[1]s HTTP/1.1\r\nHost: %[1]s\r\n\r\n", dst); err != nil {
		return errors.New("bulkhead: the relay does not answer")
	}
	buffered := bufio.NewReader(conn)
	resp, err := http.ReadResponse(buffered, &http.Request{Method: http.MethodConnect})
	if err != nil {
		return errors.New("bulkhead: the relay does not answer")
	}
	if resp.StatusCode != http.StatusOK {
		// The answer to CONNECT has a body only if it is a refusal.
		text, _ := io.ReadAll(io.LimitReader(buffered, min(max(resp.ContentLength, 0), 4<<10)))
		if len(text) == 0 {
			return fmt.Errorf("bulkhead: %s is refused", dst)
		}
		return errors.New(string(text))
	}
	conn.SetDeadline(time.Time{})
	go func() {
		io.Copy(conn, in)
		conn.(*net.TCPConn).CloseWrite()
	}()
	_, err = io.Copy(out, buffered)
	return err
}
