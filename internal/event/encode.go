package event

import (
	"encoding/json"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	v1 "github.com/bulkhead-dev/bulkhead/api/v1"
)

// appendLine appends what json.Marshal would, in a third of the time: every
// request of a sandbox is a line. A test holds the two together.
func appendLine(b []byte, e v1.Event) []byte {
	b = append(b, `{"v":`...)
	b = strconv.AppendInt(b, int64(e.Version), 10)
	b = append(b, `,"time":"`...)
	b = e.Time.AppendFormat(b, time.RFC3339Nano)
	b = append(b, `","seq":`...)
	b = strconv.AppendUint(b, e.Seq, 10)
	b = field(b, `,"session":`, string(e.Session))
	b = field(b, `,"actor":`, e.Actor)
	b = field(b, `,"action":`, string(e.Action))
	b = field(b, `,"resource":`, string(e.Resource))
	b = field(b, `,"verdict":`, e.Verdict.String())
	b = field(b, `,"reason":{"code":`, e.Reason.Code)
	b = field(b, `,"message":`, e.Reason.Message)
	b = append(b, `,"rule":{`...)
	sep := ""
	if rule := e.Reason.Rule; rule.File != "" {
		b, sep = field(b, `"file":`, rule.File), ","
	}
	if n := e.Reason.Rule.Line; n != 0 {
		b = strconv.AppendInt(append(append(b, sep...), `"line":`...), int64(n), 10)
		sep = ","
	}
	if n := e.Reason.Rule.Column; n != 0 {
		b = strconv.AppendInt(append(append(b, sep...), `"column":`...), int64(n), 10)
	}
	b = append(b, '}')
	if e.Reason.Remedy != "" {
		b = field(b, `,"remedy":`, e.Reason.Remedy)
	}
	b = append(b, '}')
	if e.Degraded {
		b = append(b, `,"degraded":true`...)
	}
	if len(e.Attrs) > 0 {
		var array [24]string
		keys := array[:0]
		for k := range e.Attrs {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		b = append(b, `,"attrs":{`...)
		for i, k := range keys {
			if i > 0 {
				b = append(b, ',')
			}
			b = text(b, k)
			b = append(b, ':')
			b = text(b, e.Attrs[k])
		}
		b = append(b, '}')
	}
	return append(b, '}')
}

func field(b []byte, name, value string) []byte { return text(append(b, name...), value) }

// text appends a string literal. What needs escaping is left to the library.
func text(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= utf8.RuneSelf || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' || c == 0x7f {
			literal, _ := json.Marshal(s) // of a string: never fails
			return append(b, literal...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}
