package gitssh

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/capability"
	"github.com/bulkhead-dev/bulkhead/internal/catalog/gitwire"
)

// parse reads the command line of an exec request. A line that gitwire accepts
// has one word for the repository, without anything that a shell would act on.
func parse(line string) (c capability.SSHCommand, err error) {
	cmd, err := gitwire.ReadCommand(line)
	if err != nil {
		return c, err
	}
	if cmd.Argument != "" {
		return c, errors.New(cmd.Name + " hands out a token of its own, which would leave the host")
	}
	word := strings.Trim(line[strings.LastIndexByte(line, ' ')+1:], "'")
	return capability.SSHCommand{
		Program: cmd.Name, Path: cmd.Path,
		Absolute: strings.HasPrefix(word, "/"), Suffix: strings.HasSuffix(strings.TrimSuffix(word, "/"), ".git"),
	}, nil
}

// line is what the upstream is told to run.
func line(program, path string) string { return program + " '" + path + "'" }

var errHead = errors.New("the push does not begin with a list of refs that can be read")

// readHead reads pkt-lines until the list of a push is complete, its options
// included; what follows stays unread. io.EOF: the client wants to push nothing.
func readHead(r io.Reader) (gitwire.Push, []byte, error) {
	var head []byte
	for {
		at := len(head)
		head = append(head, 0, 0, 0, 0)
		if _, err := io.ReadFull(r, head[at:]); err != nil {
			if at == 0 && err == io.EOF {
				return gitwire.Push{}, nil, io.EOF
			}
			return gitwire.Push{}, nil, errHead
		}
		n, ok := hexLength(head[at:])
		if !ok || n > 0 && n <= 4 || n > gitwire.MaxPacket {
			return gitwire.Push{}, nil, errHead
		}
		if at+n > gitwire.MaxHead {
			return gitwire.Push{}, nil, fmt.Errorf("the list of refs of the push has more than %d KiB", gitwire.MaxHead>>10)
		}
		if n > 0 {
			head = append(head, make([]byte, n-4)...)
			if _, err := io.ReadFull(r, head[at+4:]); err != nil {
				return gitwire.Push{}, nil, errHead
			}
			continue
		}
		push, size, err := gitwire.ReadPush(head)
		if errors.Is(err, gitwire.ErrShort) {
			continue
		}
		if err == nil && size != len(head) {
			err = errHead
		}
		return push, head, err
	}
}

func hexLength(b []byte) (n int, ok bool) {
	for _, c := range b {
		switch {
		case '0' <= c && c <= '9':
			n = n<<4 | int(c-'0')
		case 'a' <= c && c <= 'f':
			n = n<<4 | int(c-'a'+10)
		default:
			return 0, false
		}
	}
	return n, true
}
