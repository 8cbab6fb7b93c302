//go:build !linux

package egress

import (
	"errors"
	"net"

	"github.com/bulkhead-dev/bulkhead/internal/egress/wire"
)

const controlFD, recordsFD, receiptsFD = 3, 4, 5

var errLinux = errors.New("the gateway needs Linux (Landlock and seccomp confine it)")

func (g *Gateway) spawn() (*net.UnixConn, wire.Pipes, error) { return nil, wire.Pipes{}, errLinux }

func recordPipes() (wire.Pipes, error) { return wire.Pipes{}, errLinux }

func controlConn() (*net.UnixConn, error) { return nil, errLinux }
