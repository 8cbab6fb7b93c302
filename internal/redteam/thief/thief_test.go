package thief

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

func all(t *Thief) string {
	var b strings.Builder
	for _, d := range t.Received() {
		b.Write(d.Data)
		b.WriteByte('\n')
	}
	return b.String()
}

func listen(t *testing.T) *Thief {
	t.Helper()
	th, err := Listen()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(th.Close)
	return th
}

func TestEveryWayOfSendingIsKept(t *testing.T) {
	th := listen(t)
	if len(th.Addrs()) < 3 {
		t.Logf("not proven here: listeners on all of 127.0.0.1, ::1 and a host address (have %v)", th.Addrs())
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr, Timeout: 5 * time.Second}
	var want []string
	for i, a := range th.Addrs() {
		for _, scheme := range []string{"http", "https"} {
			mark := fmt.Sprintf("%s-body-%d", scheme, i)
			want = append(want, mark)
			res, err := client.Post(scheme+"://"+a.String()+"/x", "text/plain", strings.NewReader(mark))
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
			if res.StatusCode != 200 {
				t.Errorf("%s: %s", mark, res.Status)
			}
		}
		for _, network := range []string{"tcp", "udp"} {
			mark := fmt.Sprintf("%s-raw-%d", network, i)
			want = append(want, mark)
			c, err := net.Dial(network, a.String())
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(c, mark)
			c.Close()
		}
	}
	tr.CloseIdleConnections()
	th.Settle()
	got := all(th)
	for _, w := range want {
		if !strings.Contains(got, w) {
			t.Errorf("%s did not arrive", w)
		}
	}
	if strings.Contains(got, "settle ") {
		t.Error("the sentinel is in the record")
	}
}

// A sender that is gone before anyone accepts must be judged all the same.
func TestNothingSentBeforeSettleIsLost(t *testing.T) {
	th := listen(t)
	for i := range 50 {
		c, err := net.Dial("tcp", th.Addrs()[0].String())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "early-%02d.", i)
		c.Close()
	}
	th.Settle()
	got := all(th)
	for i := range 50 {
		if !strings.Contains(got, fmt.Sprintf("early-%02d.", i)) {
			t.Errorf("early-%02d was lost", i)
		}
	}
}

func TestAFloodIsBounded(t *testing.T) {
	th := listen(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			c, err := net.Dial("tcp", th.Addrs()[0].String())
			if err != nil {
				return
			}
			defer c.Close()
			chunk := bytes.Repeat([]byte("x"), 1<<20)
			for range 16 {
				if _, err := c.Write(chunk); err != nil {
					return
				}
			}
		}()
	}
	wg.Wait()
	th.Settle()
	for _, d := range th.Received() {
		if len(d.Data) > 2*maxBytes {
			t.Errorf("kept %d bytes of one connection", len(d.Data))
		}
	}
}

func TestAnOpenConnectionIsJudged(t *testing.T) {
	th := listen(t)
	c, err := net.Dial("tcp", th.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "still talking")
	th.Settle()
	if !strings.Contains(all(th), "still talking") {
		t.Error("what an open connection brought is not in the record")
	}
}
