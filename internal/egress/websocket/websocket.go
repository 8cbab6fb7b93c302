// Package websocket carries a granted WebSocket frame by frame (RFC 6455).
//
// In: a request's headers, from which Read takes the one strict form of a
// handshake, and later the two byte streams behind it. Out: a handshake made
// anew for the upstream, the check of its answer, the answer for the client, and
// Relay, which reads frames on either side and writes new ones on the other.
// Nothing is copied as bytes: masks, lengths and fragments of what is sent are
// ours, so that both ends see the same messages and nothing else. No extension
// is ever agreed on; compressed messages are a protocol error.
//
// Refused with a close code on both sides: unmasked frames of the client and
// masked ones of the upstream, reserved bits and opcodes, control frames that
// are long or in fragments, text that is not UTF-8, close codes that nobody may
// send, messages over the limits, what the judge refuses.
//
// Figures: one buffer of bufferSize for each direction; a message of at most
// Options.MaxJudged bytes is held if it has to be judged, and at most
// Options.MaxMessage bytes pass in any other. closeWait is given for the answer
// to a close, Options.Stall for each write, Options.Idle without any frame.
package websocket

import (
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

const (
	version      = "13"
	maxProtocols = 32
	maxProtocol  = 128
)

// accept is the answer to a key (RFC 6455 section 4.2.2).
func accept(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// Asked reports whether a request wants to become a WebSocket: whether it says
// so in any of the places where a server could look.
func Asked(h http.Header) bool {
	for _, v := range h["Upgrade"] {
		for token := range strings.SplitSeq(v, ",") {
			if name, _, _ := strings.Cut(strings.TrimSpace(token), "/"); strings.EqualFold(name, "websocket") {
				return true
			}
		}
	}
	return false
}

// Handshake is a client's request for a WebSocket.
type Handshake struct {
	// Protocols are the subprotocols that the client offers, in its order.
	Protocols []string

	key  string // the client's
	mine string // ours, for the upstream
}

// Read takes the handshake out of a request's headers: every Sec-Websocket-*
// and Upgrade is removed from h.
func Read(r *http.Request, h http.Header) (*Handshake, error) {
	if r.Method != http.MethodGet || r.ProtoMajor != 1 || r.ProtoMinor != 1 {
		return nil, errors.New("a WebSocket begins with GET over HTTP/1.1")
	}
	if r.ContentLength != 0 || len(r.TransferEncoding) > 0 {
		return nil, errors.New("a WebSocket handshake has no body")
	}
	if up := r.Header["Upgrade"]; len(up) != 1 || !isWord(up[0], "websocket") {
		return nil, errors.New("the Upgrade header is not websocket alone")
	}
	if !hasToken(r.Header["Connection"], "upgrade") {
		return nil, errors.New("the Connection header does not say upgrade")
	}
	if v := r.Header["Sec-Websocket-Version"]; len(v) != 1 || v[0] != version {
		return nil, errors.New("the WebSocket version is not 13")
	}
	k := &Handshake{}
	if v := r.Header["Sec-Websocket-Key"]; len(v) == 1 {
		k.key = v[0]
	}
	if raw, err := base64.StdEncoding.Strict().DecodeString(k.key); err != nil || len(raw) != 16 || len(k.key) != 24 {
		return nil, errors.New("the Sec-WebSocket-Key is not 16 bytes of base64, once")
	}
	for _, line := range r.Header["Sec-Websocket-Protocol"] {
		for p := range strings.SplitSeq(line, ",") {
			p = strings.Trim(p, " \t")
			if !isToken(p) || len(p) > maxProtocol || len(k.Protocols) == maxProtocols || slices.Contains(k.Protocols, p) {
				return nil, errors.New("the Sec-WebSocket-Protocol header is not a list of different names")
			}
			k.Protocols = append(k.Protocols, p)
		}
	}
	var nonce [16]byte
	rand.Read(nonce[:])
	k.mine = base64.StdEncoding.EncodeToString(nonce[:])
	for name := range h {
		if name == "Upgrade" || strings.HasPrefix(name, "Sec-Websocket-") {
			delete(h, name)
		}
	}
	return k, nil
}

// Offer writes the handshake for the upstream into h, with the subprotocols
// that k still has.
func (k *Handshake) Offer(h http.Header) {
	h["Connection"] = []string{"Upgrade"}
	h["Upgrade"] = []string{"websocket"}
	h["Sec-Websocket-Version"] = []string{version}
	h["Sec-Websocket-Key"] = []string{k.mine}
	if len(k.Protocols) > 0 {
		h["Sec-Websocket-Protocol"] = []string{strings.Join(k.Protocols, ", ")}
	}
}

// Verify checks the upstream's 101 and returns the subprotocol it chose.
func (k *Handshake) Verify(resp *http.Response) (protocol string, err error) {
	h := resp.Header
	switch up, acc, proto := h["Upgrade"], h["Sec-Websocket-Accept"], h["Sec-Websocket-Protocol"]; {
	case resp.StatusCode != http.StatusSwitchingProtocols:
		return "", fmt.Errorf("the upstream answered %d", resp.StatusCode)
	case len(up) != 1 || !isWord(up[0], "websocket") || !hasToken(h["Connection"], "upgrade"):
		return "", errors.New("the upstream switched to something that is no WebSocket")
	case len(acc) != 1 || acc[0] != accept(k.mine):
		return "", errors.New("the upstream did not answer this handshake (Sec-WebSocket-Accept)")
	case len(h["Sec-Websocket-Extensions"]) > 0:
		return "", errors.New("the upstream agreed on an extension that was not offered")
	case len(proto) > 1 || len(proto) == 1 && !slices.Contains(k.Protocols, proto[0]):
		return "", errors.New("the upstream chose a subprotocol that was not offered")
	case len(proto) == 1:
		protocol = proto[0]
	}
	return protocol, nil
}

// Answer is the head of the 101 for the client.
func (k *Handshake) Answer(protocol string) []byte {
	s := "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + accept(k.key) + "\r\n"
	if protocol != "" {
		s += "Sec-WebSocket-Protocol: " + protocol + "\r\n"
	}
	return []byte(s + "\r\n")
}

func hasToken(lines []string, want string) bool {
	for _, l := range lines {
		for token := range strings.SplitSeq(l, ",") {
			if isWord(strings.Trim(token, " \t"), want) {
				return true
			}
		}
	}
	return false
}

// isWord compares without case, of ASCII alone.
func isWord(s, want string) bool { return len(s) == len(want) && strings.EqualFold(s, want) }

func isToken(s string) bool {
	for i := range len(s) {
		ch := s[i]
		switch {
		case 'a' <= ch && ch <= 'z', 'A' <= ch && ch <= 'Z', '0' <= ch && ch <= '9', strings.IndexByte("!#$%&'*+-.^_`|~", ch) >= 0:
		default:
			return false
		}
	}
	return s != ""
}
