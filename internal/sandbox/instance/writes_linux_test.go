package instance

import "testing"

func TestJudgeScope(t *testing.T) {
	for _, c := range []struct {
		text string
		most int
		ok   bool
	}{{"0\n", 1, true}, {"1\n", 1, true}, {"2\n", 1, false}, {"2\n", 2, true}, {"3\n", 2, false}, {"", 1, false}, {"x", 2, false}} {
		if _, remedy := judgeScope(c.text, c.most); (remedy == "") != c.ok {
			t.Errorf("%q, at most %d: %q", c.text, c.most, remedy)
		}
	}
}
