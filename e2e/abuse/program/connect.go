//go:build linux

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"
)

// proxy is the relay's address where there is no TAP.
var proxy = func() string {
	u, err := url.Parse(os.Getenv("HTTPS_PROXY"))
	if err != nil {
		return ""
	}
	return u.Host
}()

// addresses remembers what DNS said, so that a flood of connections is not one
// of queries.
var addresses sync.Map

// dial opens a connection to host:port in the way that the sandbox has; it
// ends with ctx.
func dial(ctx context.Context, host string, port int) (net.Conn, error) {
	d := net.Dialer{Timeout: 10 * time.Second}
	at := fmt.Sprintf("%s:%d", host, port)
	if proxy != "" {
		c, err := d.DialContext(ctx, "tcp", proxy)
		if err != nil {
			return nil, err
		}
		c = until(ctx, c)
		fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", at, at)
		br := bufio.NewReader(c)
		status, err := br.ReadString('\n')
		if err == nil && !strings.Contains(status, " 200 ") {
			err = errors.New(status)
		}
		for l := ""; err == nil && l != "\r\n"; {
			l, err = br.ReadString('\n')
		}
		if err != nil {
			c.Close()
			return nil, err
		}
		return c, nil
	}
	ip, ok := addresses.Load(host)
	if !ok {
		found, err := net.DefaultResolver.LookupHost(ctx, host)
		if err != nil {
			return nil, err
		}
		ip, _ = addresses.LoadOrStore(host, found[0])
	}
	c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(ip.(string), fmt.Sprint(port)))
	if err != nil {
		return nil, err
	}
	return until(ctx, c), nil
}

// until closes c with ctx.
func until(ctx context.Context, c net.Conn) net.Conn {
	return &ending{c, context.AfterFunc(ctx, func() { c.Close() })}
}

type ending struct {
	net.Conn
	stop func() bool
}

func (e *ending) Close() error {
	e.stop()
	return e.Conn.Close()
}

// secure opens a connection of TLS.
func secure(ctx context.Context, host, protocol string) (*tls.Conn, error) {
	c, err := dial(ctx, host, 443)
	if err != nil {
		return nil, err
	}
	tc := tls.Client(c, &tls.Config{ServerName: host, InsecureSkipVerify: true, NextProtos: []string{protocol}})
	if err := tc.HandshakeContext(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return tc, nil
}

// over opens a connection and gives it to do; what comes back is thrown away.
func over(ctx context.Context, host, protocol string, do func(c net.Conn)) {
	c, err := secure(ctx, host, protocol)
	if err != nil {
		pause(ctx, 10*time.Millisecond)
		return
	}
	defer c.Close()
	go io.Copy(io.Discard, c)
	do(c)
}
