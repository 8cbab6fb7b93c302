package catalog

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/hostport"
)

// Examples are requests and what a service takes each for: data beside a service
// file that a person without Go can extend (testdata/identify/README.md has the
// format). They are pure: nothing is sent.
type Examples struct {
	// Answers has an entry for each expectation, in the order of the file.
	Answers []Answer
	// Uncovered are the operations that no example is.
	Uncovered []string

	lines []string
}

// Answer is one expectation and what the service says.
type Answer struct {
	Line    int    // in the file, from 1
	Request string // method and URL
	Want    string
	Got     string
	// Asked is the request in the form that is judged, without the message on a
	// WebSocket that an answer may be about.
	Asked   Request
	Message []byte
}

// OK reports that the service says what was expected.
func (a Answer) OK() bool { return a.Got == a.Want }

// Text is the file with every expectation replaced by the service's answer.
func (x *Examples) Text() string {
	lines := slices.Clone(x.lines)
	for _, a := range x.Answers {
		lines[a.Line-1] = a.Got
	}
	return strings.Join(lines, "\n")
}

// Examples asks the service about each request of data; file is for messages.
// The error says where a line is not in the format.
func (s *Service) Examples(file string, data []byte) (*Examples, error) {
	x := &Examples{lines: strings.Split(string(data), "\n")}
	covered := map[string]bool{}
	var e example
	for n, text := range x.lines {
		text = strings.TrimSuffix(text, "\r")
		if !strings.HasPrefix(text, "= ") && !strings.HasPrefix(text, "! ") {
			if err := e.read(text); err != nil {
				return nil, fmt.Errorf("%s:%d: %v", file, n+1, err)
			}
			continue
		}
		if e.line == "" {
			return nil, fmt.Errorf("%s:%d: an answer without a request: METHOD URL stands above it", file, n+1)
		}
		r, err := e.request()
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %v", file, n+1, err)
		}
		got := e.ask(s, r, func(op string) { covered[op] = true })
		x.Answers = append(x.Answers, Answer{Line: n + 1, Request: e.line, Want: text, Got: got, Asked: r, Message: e.message})
		e.asked = true
	}
	if len(x.Answers) == 0 {
		return nil, fmt.Errorf("%s: there is no example in it: METHOD URL, and below it = OPERATION", file)
	}
	for _, o := range s.Operations {
		if !covered[o.Name] {
			x.Uncovered = append(x.Uncovered, o.Name)
		}
	}
	return x, nil
}

// example is one request of the file.
type example struct {
	line    string
	header  http.Header
	body    []byte
	message []byte // on the WebSocket that the request opened
	asked   bool
}

func (e *example) read(text string) error {
	if text == "" || text[0] == '#' {
		return nil
	}
	if msg, ok := strings.CutPrefix(text, "> "); ok && e.line != "" {
		e.message = []byte(msg)
		return nil
	}
	if e.line == "" || e.asked {
		*e = example{line: text, header: http.Header{}}
		return nil
	}
	switch text[0] {
	case '{', '[':
		e.body = []byte(text)
		e.usually("application/json")
	case '~':
		e.body = []byte(strings.TrimPrefix(text[1:], " "))
		e.usually("application/x-www-form-urlencoded")
	case '"':
		s, err := strconv.Unquote(text)
		if err != nil {
			return fmt.Errorf("%s is not quoted as Go does", text)
		}
		e.body = append(e.body, s...)
	case '|':
		end := "\n"
		if strings.HasPrefix(e.header.Get("Content-Type"), "multipart/") {
			end = "\r\n"
		}
		e.body = append(e.body, strings.TrimPrefix(text[1:], " ")+end...)
	default:
		k, v, ok := strings.Cut(text, ": ")
		if !ok {
			return fmt.Errorf("%q is no header (Name: value), body or answer", text)
		}
		e.header.Add(k, v)
	}
	return nil
}

func (e *example) usually(contentType string) {
	if e.header["Content-Type"] == nil {
		e.header.Set("Content-Type", contentType)
	}
}

// request is the line in the form that is judged: what the gateway refuses
// before any service sees it is not an example of anything.
func (e *example) request() (Request, error) {
	method, raw, ok := strings.Cut(e.line, " ")
	u, err := url.Parse(raw)
	if !ok || err != nil || u.Host == "" {
		return Request{}, fmt.Errorf("%q is not METHOD URL", e.line)
	}
	port := map[string]string{"https": "443", "http": "80", "ssh": "22"}[u.Scheme]
	if u.Port() != "" {
		port = u.Port()
	}
	hp, err := hostport.Parse(u.Hostname() + ":" + port)
	if err != nil {
		return Request{}, err
	}
	path := u.Path
	if strings.Contains(u.EscapedPath(), escapedSlash) && !strings.HasPrefix(path, "/@") {
		parts := strings.Split(u.EscapedPath(), escapedSlash)
		for i := range parts {
			if parts[i], err = url.PathUnescape(parts[i]); err != nil {
				return Request{}, fmt.Errorf("the path of %q is not well-formed", e.line)
			}
		}
		path = strings.Join(parts, escapedSlash)
	}
	return Request{Scheme: u.Scheme, Host: hp.Host, Port: hp.Port, Method: method, Path: path, Query: u.Query(), Header: maps.Clone(e.header), Body: bytes.Clone(e.body), HasBody: e.body != nil}, nil
}

// ask says what the request is, in the words of the file.
func (e *example) ask(s *Service, r Request, covered func(op string)) string {
	op, resource, err := s.Identify(r)
	contents := Contents{Uses: op.Uses, Credentials: op.Credentials}
	if err == nil && e.message != nil {
		own, _, _ := s.Match(&r)
		contents, err = s.JudgeMessage(own, e.message)
	}
	switch {
	case errors.Is(err, ErrQuery):
		return "! query"
	case errors.Is(err, ErrUnknownOperation):
		return "! unknown"
	case errors.Is(err, ErrBadBody):
		return "! body"
	case err != nil:
		return err.Error()
	}
	covered(op.Name)
	got := "= " + op.Name
	if resource != "" {
		got += " " + resource
	}
	for _, u := range contents.Uses {
		name := u.Operation
		if name == "" {
			name = "?"
		}
		got += " + " + name
		if u.Own {
			got += " " + u.Resource
		}
		covered(u.Operation)
	}
	var slots []Slot
	if s.Credential != nil {
		slots = s.Credential.Slots
	}
	for _, f := range append(CredentialsIn(r, slots), contents.Credentials...) {
		if s.PublicKey(r, f) {
			continue
		}
		if op.Signs(f) || slices.ContainsFunc(slots, func(at Slot) bool { return at.Place() == f.Slot }) {
			continue
		}
		word := " ! "
		if f.Kind == Placed {
			word = " @ "
		}
		got += word + f.Slot.String()
	}
	for _, name := range slices.Sorted(maps.Keys(r.Header)) {
		if !s.takesHeader(name) && !isSecretHeader(name) {
			got += " - " + name
		}
	}
	return got
}
