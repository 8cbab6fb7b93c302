package dial

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"

	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Quota bounds how many bytes the connections of a session carry in all, to all
// upstreams together and to each host, with everything that belongs to them
// (headers, TLS). No byte more is sent than Upload allows; of Download each open
// connection may exceed it by what one read takes. The zero value bounds nothing.
type Quota struct {
	Upload, Download, UploadEach, DownloadEach Bound
}

// Bound is one number of bytes, and the policy's line that says so; zero is none.
type Bound struct {
	Bytes int64
	Pos   vocabulary.Position
}

// QuotaError ends the connections of a session that has used a bound up.
type QuotaError struct {
	Limit string // as in the policy: upload, download-each, …
	Host  hostport.Host
	Bound Bound
}

func (e *QuotaError) Error() string {
	of := "this session"
	if e.Limit == "upload-each" || e.Limit == "download-each" {
		of = "this session and " + e.Host.String()
	}
	return fmt.Sprintf("the %d bytes of limits.%s are used up for %s", e.Bound.Bytes, e.Limit, of)
}

// meter counts; nil counts nothing.
type meter struct {
	quota Quota
	tell  func(*QuotaError)

	up, down *account
	mu       sync.Mutex
	each     map[hostport.Host][2]*account
}

// account is one count and its bound.
type account struct {
	limit string
	bound Bound
	used  atomic.Int64
	told  atomic.Bool
}

// newMeter returns nil if nothing is bounded. tell is called once for each bound
// that is reached (for each host, of the bounds for each), and may be nil.
func newMeter(q Quota, tell func(*QuotaError)) *meter {
	if q.Upload.Bytes == 0 && q.Download.Bytes == 0 && q.UploadEach.Bytes == 0 && q.DownloadEach.Bytes == 0 {
		return nil
	}
	return &meter{
		quota: q, tell: tell, each: map[hostport.Host][2]*account{},
		up: &account{limit: "upload", bound: q.Upload}, down: &account{limit: "download", bound: q.Download},
	}
}

// maxAccounts bounds the hosts that are told apart, of which a wildcard grant
// allows any number; those beyond share one account.
const maxAccounts = 4096

// of returns the accounts of a host.
func (m *meter) of(h hostport.Host) (up, down []*account) {
	m.mu.Lock()
	defer m.mu.Unlock()
	own, ok := m.each[h]
	if !ok && len(m.each) >= maxAccounts {
		h = hostport.Host{}
		own, ok = m.each[h]
	}
	if !ok {
		own = [2]*account{{limit: "upload-each", bound: m.quota.UploadEach}, {limit: "download-each", bound: m.quota.DownloadEach}}
		m.each[h] = own
	}
	return []*account{m.up, own[0]}, []*account{m.down, own[1]}
}

// left fails if there is nothing left to carry to or from a host.
func (m *meter) left(h hostport.Host) error {
	if m == nil {
		return nil
	}
	up, down := m.of(h)
	for _, a := range append(append([]*account(nil), up...), down...) {
		if a.bound.Bytes > 0 && a.used.Load() >= a.bound.Bytes {
			return m.spent(a, h)
		}
	}
	return nil
}

// over counts what c carries.
func (m *meter) over(c net.Conn, h hostport.Host) net.Conn {
	if m == nil {
		return c
	}
	k := &counted{Conn: c, meter: m, host: h}
	k.up, k.down = m.of(h)
	return k
}

func (m *meter) spent(a *account, h hostport.Host) *QuotaError {
	e := &QuotaError{Limit: a.limit, Host: h, Bound: a.bound}
	if m.tell != nil && !a.told.Swap(true) {
		m.tell(e)
	}
	return e
}

type counted struct {
	net.Conn
	meter    *meter
	host     hostport.Host
	up, down []*account
	ended    atomic.Pointer[QuotaError]
}

// end closes the connection; what fails because of that fails with this reason.
func (k *counted) end(a *account) error {
	e := k.meter.spent(a, k.host)
	k.ended.CompareAndSwap(nil, e)
	k.Conn.Close()
	return e
}

// Write sends all of p or nothing.
func (k *counted) Write(p []byte) (int, error) {
	n := int64(len(p))
	for i, a := range k.up {
		if used := a.used.Add(n); a.bound.Bytes > 0 && used > a.bound.Bytes {
			for _, taken := range k.up[:i+1] {
				taken.used.Add(-n)
			}
			return 0, k.end(a)
		}
	}
	return k.Conn.Write(p)
}

func (k *counted) Read(p []byte) (int, error) {
	for _, a := range k.down {
		if a.bound.Bytes == 0 {
			continue
		}
		left := a.bound.Bytes - a.used.Load()
		if left <= 0 {
			return 0, k.end(a)
		}
		p = p[:min(int64(len(p)), left)]
	}
	n, err := k.Conn.Read(p)
	if e := k.ended.Load(); e != nil && err != nil {
		err = e
	}
	for _, a := range k.down {
		a.used.Add(int64(n))
	}
	return n, err
}

// CloseWrite ends one direction of an opaque flow.
func (k *counted) CloseWrite() error {
	if half, ok := k.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return k.Conn.Close()
}
