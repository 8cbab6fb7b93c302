//go:build !linux

package egress

import (
	"errors"
	"net"
)

const controlFD = 3

var errLinux = errors.New("the gateway needs Linux (Landlock and seccomp confine it)")

func (g *Gateway) spawn() (*net.UnixConn, error) { return nil, errLinux }

func controlConn() (*net.UnixConn, error) { return nil, errLinux }
