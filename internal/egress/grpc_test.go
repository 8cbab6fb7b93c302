package egress

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"crypto/tls"
)

// bytesCodec carries messages as they are.
type bytesCodec struct{}

func (bytesCodec) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (bytesCodec) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}
func (bytesCodec) Name() string { return "bytes" }

// grpcServer is an upstream with one method for every way to stream.
func grpcServer(t testing.TB, cancelled chan<- string, names ...string) *upstream {
	t.Helper()
	u := &upstream{ca: newCA(t, "upstream CA"), names: names}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.ForceServerCodec(bytesCodec{}), grpc.Creds(credentials.NewServerTLSFromCert(ptr(u.ca.leaf(t, names...)))), grpc.UnknownServiceHandler(func(_ any, ss grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(ss)
		md, _ := metadata.FromIncomingContext(ss.Context())
		ss.SetHeader(metadata.Pairs("x-got-auth", fmt.Sprint(md["authorization"])))
		ss.SetTrailer(metadata.Pairs("x-end", "trailer", "x-key", strings.Join(md["authorization"], "")))
		var in []byte
		switch method {
		case "/test.S/Unary":
			if err := ss.RecvMsg(&in); err != nil {
				return err
			}
			return ss.SendMsg(ptr(append([]byte("re: "), in...)))
		case "/test.S/Up":
			n := 0
			for {
				if err := ss.RecvMsg(&in); err == io.EOF {
					return ss.SendMsg(ptr(fmt.Appendf(nil, "%d", n)))
				} else if err != nil {
					return err
				}
				n += len(in)
			}
		case "/test.S/Down":
			if err := ss.RecvMsg(&in); err != nil {
				return err
			}
			for i := range 100 {
				if err := ss.SendMsg(ptr(fmt.Appendf(nil, "%d", i))); err != nil {
					return err
				}
			}
			return nil
		case "/test.S/Both":
			for {
				if err := ss.RecvMsg(&in); err == io.EOF {
					return nil
				} else if err != nil {
					return err
				}
				if err := ss.SendMsg(ptr(append([]byte("re: "), in...))); err != nil {
					return err
				}
			}
		case "/test.S/Fails":
			return status.Error(codes.FailedPrecondition, "50% naïve\nsecond line")
		case "/test.S/Early":
			return ss.SendMsg(ptr([]byte("enough")))
		case "/test.S/Waits":
			<-ss.Context().Done()
			cancelled <- ss.Context().Err().Error()
			return ss.Context().Err()
		}
		return status.Error(codes.Unimplemented, method)
	}))
	go s.Serve(l)
	t.Cleanup(s.Stop)
	u.addr = l.Addr().String()
	return u
}

func ptr[T any](v T) *T { return &v }

func (r *rig) grpc(t testing.TB, name string) *grpc.ClientConn {
	t.Helper()
	cc, err := grpc.NewClient("passthrough:///"+name+":443",
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: r.ca.pool()})), grpc.WithDefaultCallOptions(grpc.ForceCodec(bytesCodec{})),
		grpc.WithContextDialer(func(_ context.Context, target string) (net.Conn, error) {
			c, err := net.Dial("tcp", r.proxy)
			if err != nil {
				return nil, err
			}
			fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target)
			var b [1]byte
			for head := ""; !strings.HasSuffix(head, "\r\n\r\n"); head += string(b[:]) {
				if _, err := c.Read(b[:]); err != nil {
					return nil, err
				}
			}
			return c, nil
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return cc
}

var bothWays = &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}

// gRPC of all four kinds passes, with its trailers, over HTTP/2 on both sides,
// under a credential and without.
func TestGRPC(t *testing.T) {
	cancelled := make(chan string, 8)
	up := grpcServer(t, cancelled, "api.test", "other.test")
	r := startRelay(t, nil, up)
	for _, name := range []string{"other.test", "api.test"} {
		cc := r.grpc(t, name)
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if name == "api.test" {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+placeholder)
		}
		var header, trailer metadata.MD
		var out []byte
		if err := cc.Invoke(ctx, "/test.S/Unary", ptr([]byte("hello")), &out, grpc.Header(&header), grpc.Trailer(&trailer)); err != nil || string(out) != "re: hello" || trailer.Get("x-end")[0] != "trailer" {
			t.Fatalf("%s: unary: %q %v %v", name, out, trailer, err)
		}
		if name == "api.test" && (!strings.Contains(fmt.Sprint(header["x-got-auth"]), "****") || strings.Contains(fmt.Sprint(header, trailer), realSecret)) {
			t.Errorf("swapped and scrubbed: %v %v", header, trailer)
		}
		stream := func(method string) grpc.ClientStream {
			s, err := cc.NewStream(ctx, bothWays, method)
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		s := stream("/test.S/Up")
		for range 50 {
			if err := s.SendMsg(ptr(make([]byte, 10000))); err != nil {
				t.Fatal(err)
			}
		}
		s.CloseSend()
		if err := s.RecvMsg(&out); err != nil || string(out) != "500000" {
			t.Errorf("client streaming: %q %v", out, err)
		}
		s = stream("/test.S/Down")
		s.SendMsg(ptr([]byte("go")))
		s.CloseSend()
		n := 0
		for ; s.RecvMsg(&out) == nil; n++ {
		}
		if n != 100 || s.Trailer().Get("x-end")[0] != "trailer" {
			t.Errorf("server streaming: %d", n)
		}
		s = stream("/test.S/Both")
		for i := range 20 { // each answer comes before the next message is sent
			msg := fmt.Sprint(i)
			if err := s.SendMsg(ptr([]byte(msg))); err != nil {
				t.Fatal(err)
			}
			if err := s.RecvMsg(&out); err != nil || string(out) != "re: "+msg {
				t.Fatalf("both ways, %d: %q %v", i, out, err)
			}
		}
		s.CloseSend()
		if err := s.RecvMsg(&out); err != io.EOF {
			t.Errorf("both ways ends with %v", err)
		}
		err := cc.Invoke(ctx, "/test.S/Fails", ptr([]byte("x")), &out)
		if status.Code(err) != codes.FailedPrecondition || status.Convert(err).Message() != "50% naïve\nsecond line" {
			t.Errorf("an upstream's own status: %v", err)
		}
		// The server answers and ends although the client's side is open.
		s = stream("/test.S/Early")
		if err := s.RecvMsg(&out); err != nil || string(out) != "enough" {
			t.Errorf("early answer: %q %v", out, err)
		}
		if err := s.RecvMsg(&out); err != io.EOF {
			t.Errorf("early end: %v", err)
		}
		short, stop := context.WithTimeout(ctx, 200*time.Millisecond)
		if err := cc.Invoke(short, "/test.S/Waits", ptr([]byte("x")), &out); status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("deadline: %v", err)
		}
		stop()
		long, stop := context.WithCancel(ctx)
		time.AfterFunc(100*time.Millisecond, stop)
		if err := cc.Invoke(long, "/test.S/Waits", ptr([]byte("x")), &out); status.Code(err) != codes.Canceled {
			t.Errorf("cancelled: %v", err)
		}
		for range 2 {
			select {
			case <-cancelled:
			case <-time.After(5 * time.Second):
				t.Error("the upstream did not hear of it")
			}
		}
	}
}

// A denial is gRPC's own: status 7, the words as its message.
func TestGRPCDenial(t *testing.T) {
	r := startRelay(t, nil, grpcServer(t, nil, "readonly.test"))
	cc := r.grpc(t, "readonly.test")
	var out []byte
	var header metadata.MD
	err := cc.Invoke(context.Background(), "/test.S/Unary", ptr([]byte("x")), &out, grpc.Header(&header))
	s := status.Convert(err)
	if s.Code() != codes.PermissionDenied || !strings.HasPrefix(s.Message(), "bulkhead: ") || !strings.Contains(s.Message(), "to allow it: ") {
		t.Errorf("%v", err)
	}
	stream, err := cc.NewStream(context.Background(), bothWays, "/test.S/Both")
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.RecvMsg(&out); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a stream: %v", err)
	}
	req, _ := http.NewRequest("POST", "https://readonly.test/test.S/Unary", strings.NewReader("\x00\x00\x00\x00\x00"))
	req.Header.Set("Content-Type", "application/grpc")
	resp, err := r.client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 || resp.Header.Get("Grpc-Status") != "7" || resp.Header.Get("Bulkhead-Denied") == "" || resp.Header.Get("Content-Type") != "application/grpc" {
		t.Errorf("%s %v", resp.Status, resp.Header)
	}
}
