package instance

import "github.com/bulkhead-dev/bulkhead/internal/sandbox/warden"

// Wardens starts a backend's wardens, one of them ahead of its use. Its zero value
// is ready. It is for one caller at a time.
type Wardens struct {
	ahead chan started // nil: none
	want  warden.Want
}

type started struct {
	handle *warden.Handle
	err    error
}

// Warm starts the one that the next Take will want, in parallel with what its caller
// still has to judge. Whoever calls it calls Take or Discard afterwards.
func (w *Wardens) Warm(want warden.Want) {
	ahead := make(chan started, 1)
	w.ahead, w.want = ahead, want
	go func() {
		h, err := warden.Spawn(want)
		ahead <- started{h, err}
	}()
}

// Discard ends what Warm started.
func (w *Wardens) Discard() {
	if w.ahead == nil {
		return
	}
	if s := <-w.ahead; s.err == nil {
		s.handle.Discard()
	}
	w.ahead = nil
}

// Take returns the one that Warm started, or a new one.
func (w *Wardens) Take(want warden.Want) (*warden.Handle, error) {
	if w.ahead != nil && w.want == want {
		s := <-w.ahead
		w.ahead = nil
		return s.handle, s.err
	}
	w.Discard()
	return warden.Spawn(want)
}
