package login

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// object decodes a JSON object; numbers stay as they were written.
func object(data []byte) (map[string]any, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var m map[string]any
	if err := dec.Decode(&m); err != nil || m == nil {
		return nil, errors.New("not a JSON object")
	}
	if dec.More() {
		return nil, errors.New("more than one JSON value")
	}
	return m, nil
}

func lookupPlace(m map[string]any, at Place) any {
	if len(at) == 0 {
		return nil
	}
	var v any = m
	for _, key := range at {
		next, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = next[key]
	}
	return v
}

func text(m map[string]any, at Place) string {
	s, _ := lookupPlace(m, at).(string)
	return s
}

// setPlace builds the way to a value.
func setPlace(m map[string]any, at Place, v any) {
	for _, key := range at[:len(at)-1] {
		next, ok := m[key].(map[string]any)
		if !ok {
			next = map[string]any{}
			m[key] = next
		}
		m = next
	}
	m[at[len(at)-1]] = v
}

// splice puts a value into a JSON object and leaves every other byte as it
// was: unknown fields, order and layout are the program's own.
func splice(data []byte, at Place, value any) ([]byte, error) {
	enc, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	return spliceRaw(data, at, enc)
}

func spliceRaw(data []byte, at Place, enc []byte) ([]byte, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	open, err := dec.Token()
	if err != nil || open != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	first := dec.InputOffset()
	start, end, empty := int64(-1), int64(-1), true
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return nil, errors.New("not a JSON object")
		}
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return nil, errors.New("not a JSON object")
		}
		empty = false
		if key == at[0] { // the last of two counts, as for JSON.parse
			end = dec.InputOffset()
			start = end - int64(len(raw))
		}
	}
	if end, err := dec.Token(); err != nil || end != json.Delim('}') {
		return nil, errors.New("not a JSON object")
	}
	if start >= 0 {
		inner := enc
		if len(at) > 1 {
			old := data[start:end]
			if t := bytes.TrimSpace(old); len(t) == 0 || t[0] != '{' {
				old = []byte("{}")
			}
			if inner, err = spliceRaw(old, at[1:], enc); err != nil {
				return nil, err
			}
		}
		return bytes.Join([][]byte{data[:start], inner, data[end:]}, nil), nil
	}
	inner := enc
	if len(at) > 1 {
		if inner, err = spliceRaw([]byte("{}"), at[1:], enc); err != nil {
			return nil, err
		}
	}
	name, err := json.Marshal(at[0])
	if err != nil {
		return nil, err
	}
	pair := bytes.Join([][]byte{name, []byte(":"), inner}, nil)
	if !empty {
		pair = append(pair, ',')
	}
	return bytes.Join([][]byte{data[:first], pair, data[first:]}, nil), nil
}

// claims decodes the middle of a JWT. Nobody checks its signature here: it is
// read from the host's own file, or came from the token endpoint over verified
// TLS (OpenID Connect Core section 3.1.3.7).
func claims(jwt string) map[string]any {
	parts := strings.Split(jwt, ".")
	if len(parts) != 3 || len(jwt) > maxToken {
		return nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	if err != nil {
		return nil
	}
	m, err := object(raw)
	if err != nil {
		return nil
	}
	return m
}

// seconds reads a number of seconds: a JSON number or a text with one.
func seconds(v any) (int64, bool) {
	var s string
	switch v := v.(type) {
	case json.Number:
		s = v.String()
	case string:
		s = v
	default:
		return 0, false
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(f) || f < 0 || f > 1e15 {
		return 0, false
	}
	return int64(f), true
}

// expiryOf is when a JWT says that it ends; zero if it says nothing.
func expiryOf(jwt string) time.Time {
	if s, ok := seconds(claims(jwt)["exp"]); ok && s > 0 {
		return time.Unix(s, 0)
	}
	return time.Time{}
}

// scopeText is a scope in OAuth's own form, whatever the file's.
func scopeText(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case []any:
		var out []string
		for _, s := range v {
			if t, ok := s.(string); ok {
				out = append(out, t)
			}
		}
		return strings.Join(out, " ")
	}
	return ""
}

// harmless copies a value that may be shown inside: small, and without any of
// the real tokens in it.
func harmless(v any, real func(string) bool) (any, bool) {
	switch v := v.(type) {
	case string:
		return v, len(v) <= 512 && !real(v)
	case bool, json.Number, nil:
		return v, true
	case []any:
		if len(v) > 64 {
			return nil, false
		}
		for _, e := range v {
			if s, ok := e.(string); !ok || len(s) > 512 || real(s) {
				return nil, false
			}
		}
		return v, true
	}
	return nil, false
}

func checkToken(what, s string) error {
	switch {
	case s == "":
		return fmt.Errorf("no %s in it", what)
	case len(s) > maxToken:
		return fmt.Errorf("its %s is longer than %d bytes", what, maxToken)
	case strings.ContainsFunc(s, func(r rune) bool { return r <= 0x20 || r >= 0x7f }):
		return fmt.Errorf("its %s has characters that no token has", what)
	}
	return nil
}
