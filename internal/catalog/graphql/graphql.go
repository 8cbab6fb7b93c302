// Package graphql reads a GraphQL request as a service's API gets it, and says
// which root fields it asks for, with which names in their arguments, and what
// is read below them.
//
// It is pure: a JSON body in, values out. It runs in the gateway, on bytes that
// a sandbox chose. Parsing is gqlparser's; what stands here is strict about
// everything that two servers could read in two ways: one JSON object with
// query, variables and operationName and no key twice; one operation in the
// document, a query or a mutation; no argument, variable, input field or
// fragment twice; fragments defined, used without cycles; no directives but
// skip and include, which change nothing here, because what may be skipped is
// judged as if it were not. Persisted queries have no text and are refused, as
// are batches. Sizes are bytes.
//
// Known hole: field names are not checked against a schema, so who lists the
// fields that may be read (Regions) must think of all types that have one.
package graphql

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/vektah/gqlparser/v2/ast"
	"github.com/vektah/gqlparser/v2/parser"
)

const (
	// MaxBody is the longest body that Parse reads.
	MaxBody   = 1 << 20
	maxTokens = 20000
	maxDepth  = 48
	maxRoots  = 128
)

// Document is one request. The zero Document asks for nothing.
type Document struct {
	Mutation bool
	// Roots are the fields of the operation itself, those of its fragments
	// included, in the order of the text.
	Roots []Field
	// Texts are all texts in the request, from literals and from variables.
	Texts []string
}

// Field is one root field.
type Field struct {
	// Name is the schema's name, never the alias.
	Name string

	args       ast.ArgumentList
	selections ast.SelectionSet
	req        *request
}

// Regions say which fields may be read: for each region the names of its
// fields, each with the region that lies below it ("" is the same).
type Regions map[string]map[string]string

type request struct {
	variables map[string]any
	defined   map[string]*ast.VariableDefinition
	fragments map[string]*ast.FragmentDefinition
	texts     []string
}

// Parse reads a body. The error says what is wrong in words that have nothing
// of the body's data in them.
func Parse(body []byte) (Document, error) {
	if len(body) > MaxBody {
		return Document{}, fmt.Errorf("it has more than %d bytes", MaxBody)
	}
	env, err := readEnvelope(body)
	if err != nil {
		return Document{}, err
	}
	// Characters that some lexers take for the end of a line or skip.
	if strings.ContainsAny(env.query, "\ufeff\u2028\u2029\u0085\v\f\x00") {
		return Document{}, errors.New("the query has characters that servers read in different ways")
	}
	doc, err := parser.ParseQueryWithTokenLimit(&ast.Source{Name: "query", Input: env.query}, maxTokens)
	if err != nil {
		return Document{}, errors.New("the query is not GraphQL, or too long")
	}
	if len(doc.Operations) != 1 {
		return Document{}, errors.New("the document has not exactly one operation; send each by itself")
	}
	op := doc.Operations[0]
	if op.Operation != ast.Query && op.Operation != ast.Mutation {
		return Document{}, errors.New("it is neither a query nor a mutation")
	}
	if env.name != "" && env.name != op.Name {
		return Document{}, errors.New("operationName is not the name of the operation")
	}
	r := &request{variables: env.variables, defined: map[string]*ast.VariableDefinition{}, fragments: map[string]*ast.FragmentDefinition{}}
	if err := r.index(doc, op); err != nil {
		return Document{}, err
	}
	w := rootWalk{req: r, entered: map[string]bool{}}
	if err := w.set(op.SelectionSet); err != nil {
		return Document{}, err
	}
	return Document{Mutation: op.Operation == ast.Mutation, Roots: w.roots, Texts: collect(r.texts, env.variables)}, nil
}

// collect appends the texts of decoded JSON.
func collect(texts []string, v any) []string {
	switch v := v.(type) {
	case string:
		return append(texts, v)
	case []any:
		for _, e := range v {
			texts = collect(texts, e)
		}
	case map[string]any:
		for _, e := range v {
			texts = collect(texts, e)
		}
	}
	return texts
}

// envelope is the JSON object around the query.
type envelope struct {
	query, name string
	variables   map[string]any
}

func readEnvelope(body []byte) (envelope, error) {
	var e envelope
	if !utf8.Valid(body) || !json.Valid(body) {
		return e, errors.New("it is not one JSON value in UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return e, errors.New("it is not a JSON object (batches are refused)")
	}
	seen := map[string]bool{}
	for dec.More() {
		t, err := dec.Token()
		key, ok := t.(string)
		if err != nil || !ok || seen[key] {
			return e, errors.New("a key occurs twice")
		}
		seen[key] = true
		v, err := value(dec, 0)
		if err != nil {
			return e, err
		}
		switch key {
		case "query":
			if e.query, ok = v.(string); !ok || e.query == "" {
				return e, errors.New("query is not a text")
			}
		case "operationName":
			if e.name, ok = v.(string); !ok && v != nil {
				return e, errors.New("operationName is not a text")
			}
		case "variables":
			if e.variables, ok = v.(map[string]any); !ok && v != nil {
				return e, errors.New("variables are not an object")
			}
		default:
			return e, errors.New("it has other keys than query, variables and operationName (persisted queries are refused)")
		}
	}
	if !seen["query"] {
		return e, errors.New("it has no query (persisted queries are refused)")
	}
	return e, nil
}

// value decodes one JSON value and refuses keys that occur twice.
func value(dec *json.Decoder, depth int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("it nests deeper than %d", maxDepth)
	}
	t, err := dec.Token()
	if err != nil {
		return nil, io.ErrUnexpectedEOF
	}
	switch t {
	case json.Delim('{'):
		m := map[string]any{}
		for dec.More() {
			t, err := dec.Token()
			key, ok := t.(string)
			if err != nil || !ok {
				return nil, io.ErrUnexpectedEOF
			}
			if _, dup := m[key]; dup {
				return nil, errors.New("a key occurs twice")
			}
			if m[key], err = value(dec, depth+1); err != nil {
				return nil, err
			}
		}
		_, err = dec.Token()
		return m, err
	case json.Delim('['):
		list := []any{}
		for dec.More() {
			v, err := value(dec, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err = dec.Token()
		return list, err
	}
	return t, nil
}

// index checks the whole document and notes its variables and fragments.
func (r *request) index(doc *ast.QueryDocument, op *ast.OperationDefinition) error {
	for _, v := range op.VariableDefinitions {
		if r.defined[v.Variable] != nil || len(v.Directives) > 0 {
			return errors.New("a variable is defined twice or has directives")
		}
		if err := r.unique(v.DefaultValue, 0); err != nil {
			return err
		}
		r.defined[v.Variable] = v
	}
	if len(op.Directives) > 0 {
		return errors.New("the operation has directives")
	}
	if err := r.checkSet(op.SelectionSet, 0); err != nil {
		return err
	}
	for _, f := range doc.Fragments {
		if r.fragments[f.Name] != nil || len(f.VariableDefinition) > 0 || len(f.Directives) > 0 {
			return errors.New("a fragment is defined twice, or has variables or directives")
		}
		r.fragments[f.Name] = f
		if err := r.checkSet(f.SelectionSet, 0); err != nil {
			return err
		}
	}
	return r.acyclic(doc.Fragments)
}

func (r *request) checkSet(set ast.SelectionSet, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("it nests deeper than %d", maxDepth)
	}
	for _, s := range set {
		var directives ast.DirectiveList
		var below ast.SelectionSet
		switch s := s.(type) {
		case *ast.Field:
			directives, below = s.Directives, s.SelectionSet
			if err := r.uniqueArguments(s.Arguments); err != nil {
				return err
			}
		case *ast.InlineFragment:
			directives, below = s.Directives, s.SelectionSet
		case *ast.FragmentSpread:
			directives = s.Directives
		default:
			return errors.New("a selection of an unknown kind")
		}
		for _, d := range directives {
			if d.Name != "skip" && d.Name != "include" {
				return errors.New("a directive other than skip and include")
			}
			if err := r.uniqueArguments(d.Arguments); err != nil {
				return err
			}
		}
		if err := r.checkSet(below, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (r *request) uniqueArguments(list ast.ArgumentList) error {
	for i, a := range list {
		for _, b := range list[:i] {
			if a.Name == b.Name {
				return errors.New("an argument is given twice")
			}
		}
		if err := r.unique(a.Value, 0); err != nil {
			return err
		}
	}
	return nil
}

// unique looks for input fields that are given twice, and collects texts.
func (r *request) unique(v *ast.Value, depth int) error {
	if v == nil {
		return nil
	}
	if depth > maxDepth {
		return fmt.Errorf("it nests deeper than %d", maxDepth)
	}
	if v.Kind == ast.StringValue || v.Kind == ast.BlockValue {
		r.texts = append(r.texts, v.Raw)
	}
	seen := map[string]bool{}
	for _, c := range v.Children {
		if v.Kind == ast.ObjectValue && seen[c.Name] {
			return errors.New("an input field is given twice")
		}
		seen[c.Name] = true
		if err := r.unique(c.Value, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// acyclic refuses fragments that use each other in a circle, and spreads of
// fragments that are not there.
func (r *request) acyclic(fragments ast.FragmentDefinitionList) error {
	state := map[string]int{} // 1: entered, 2: done
	var enter func(name string, depth int) error
	var set func(s ast.SelectionSet, depth int) error
	set = func(s ast.SelectionSet, depth int) error {
		for _, sel := range s {
			var err error
			switch sel := sel.(type) {
			case *ast.Field:
				err = set(sel.SelectionSet, depth)
			case *ast.InlineFragment:
				err = set(sel.SelectionSet, depth)
			case *ast.FragmentSpread:
				err = enter(sel.Name, depth+1)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	enter = func(name string, depth int) error {
		f := r.fragments[name]
		switch {
		case f == nil:
			return errors.New("a fragment is used and not defined")
		case state[name] == 1 || depth > maxDepth:
			return errors.New("fragments use each other in a circle, or too deep")
		case state[name] == 2:
			return nil
		}
		state[name] = 1
		if err := set(f.SelectionSet, depth); err != nil {
			return err
		}
		state[name] = 2
		return nil
	}
	for _, f := range fragments {
		if err := enter(f.Name, 0); err != nil {
			return err
		}
	}
	return nil
}

// rootWalk collects the fields of the operation through fragments; what it
// enters once is not entered again, since it could only add what is there.
type rootWalk struct {
	req     *request
	roots   []Field
	entered map[string]bool
}

func (w *rootWalk) set(set ast.SelectionSet) error {
	for _, s := range set {
		var err error
		switch s := s.(type) {
		case *ast.Field:
			if len(w.roots) == maxRoots {
				return fmt.Errorf("it asks for more than %d root fields", maxRoots)
			}
			w.roots = append(w.roots, Field{s.Name, s.Arguments, s.SelectionSet, w.req})
		case *ast.InlineFragment:
			err = w.set(s.SelectionSet)
		case *ast.FragmentSpread:
			f := w.req.fragments[s.Name]
			if f == nil {
				return errors.New("a fragment is used and not defined")
			}
			if !w.entered[s.Name] {
				w.entered[s.Name] = true
				err = w.set(f.SelectionSet)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Text is the text at a place of the field's arguments, such as "owner" or
// "input", "repositoryId", from a literal or from a variable. It is not there
// if it is anything but one plain text.
func (f Field) Text(place ...string) (string, bool) {
	if len(place) == 0 {
		return "", false
	}
	for _, a := range f.args {
		if a.Name == place[0] {
			return f.req.text(a.Value, place[1:])
		}
	}
	return "", false
}

func (r *request) text(v *ast.Value, place []string) (string, bool) {
	switch {
	case v == nil:
		return "", false
	case v.Kind == ast.Variable:
		def := r.defined[v.Raw]
		given, ok := r.variables[v.Raw]
		switch {
		case def == nil:
			return "", false
		case ok:
			return jsonText(given, place)
		case def.DefaultValue == nil || def.DefaultValue.Kind == ast.Variable:
			return "", false
		}
		return r.text(def.DefaultValue, place)
	case len(place) == 0:
		return v.Raw, v.Kind == ast.StringValue
	case v.Kind != ast.ObjectValue:
		return "", false
	}
	for _, c := range v.Children {
		if c.Name == place[0] {
			return r.text(c.Value, place[1:])
		}
	}
	return "", false
}

func jsonText(v any, place []string) (string, bool) {
	for _, name := range place {
		m, ok := v.(map[string]any)
		if !ok {
			return "", false
		}
		v = m[name]
	}
	s, ok := v.(string)
	return s, ok
}

// Within reports whether everything that is read below the field lies in the
// region; if not, outside is the name of a field that doesn't.
func (f Field) Within(regions Regions, region string) (outside string, ok bool) {
	w := regionWalk{f.req, regions, map[[2]string]bool{}, ""}
	ok = w.set(f.selections, region, 0)
	return w.outside, ok
}

type regionWalk struct {
	req     *request
	regions Regions
	done    map[[2]string]bool // fragment, region
	outside string
}

func (w *regionWalk) set(set ast.SelectionSet, region string, depth int) bool {
	if depth > 2*maxDepth*maxDepth { // fragments are bounded, each nests as deep as may be
		return false
	}
	for _, s := range set {
		switch s := s.(type) {
		case *ast.Field:
			below, ok := w.regions[region][s.Name]
			if ok = ok || s.Name == "__typename"; !ok {
				w.outside = s.Name
				return false
			}
			if below == "" {
				below = region
			}
			if !w.set(s.SelectionSet, below, depth+1) {
				return false
			}
		case *ast.InlineFragment:
			if !w.set(s.SelectionSet, region, depth+1) {
				return false
			}
		case *ast.FragmentSpread:
			at := [2]string{s.Name, region}
			if w.done[at] {
				continue
			}
			w.done[at] = true
			if f := w.req.fragments[s.Name]; f == nil || !w.set(f.SelectionSet, region, depth+1) {
				return false
			}
		}
	}
	return true
}
