package plot

import (
	"bytes"
	"encoding/xml"
	"io"
	"math"
	"strings"
	"testing"
)

// What is drawn is well-formed and holds every name and value, whatever the
// figures are.
func TestSVG(t *testing.T) {
	b := SVG("a <title>", "caption & more", []Panel{
		{Title: "one", Note: "ms", Series: []string{"p50", "p99"}, Format: "%.1f", Mark: 3, Rows: []Row{{"us", true, []float64{1.25, 7}}, {"<them>", false, []float64{math.NaN(), -2}}}},
		{Title: "nothing", Format: "%.0f"},
		{Title: "zero", Format: "%.0f", Series: []string{"x"}, Rows: []Row{{"us", true, []float64{0}}}},
	})
	for d := xml.NewDecoder(bytes.NewReader(b)); ; {
		if _, err := d.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("%v\n%s", err, b)
		}
	}
	for _, want := range []string{"1.2 p50", "7.0 p99", "&lt;them&gt;", "not measured", "goal 3.0", "prefers-color-scheme: dark"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %q", want)
		}
	}
}
