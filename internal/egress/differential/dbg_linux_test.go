package differential
import ("testing";"time")
func TestDbg(t *testing.T) {
	ls := lanesOf(t, "https")
	begin := time.Now()
	for _, s := range seeds2() {
	  for _, h2 := range []bool{false,true} {
		now := time.Now()
		r := try2(t, ls[0], h2, s)
		if r!=nil && time.Since(now) > 100*time.Millisecond { t.Logf("%v %v %.300q cut=%v refusal=%q", h2,time.Since(now), s, r.cut, r.refusal) }
		}
		if time.Since(begin) > 20*time.Second { break }
	}
}
