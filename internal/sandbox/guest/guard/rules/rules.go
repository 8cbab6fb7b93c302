// Package rules says which names of a writable folder are protected: what the
// host runs or obeys later. It is pure and knows names only; the guard, which
// asks it, knows the file system.
//
// A name is compared as a file system that ignores case would: a folder may lie
// on one, or be copied to one.
package rules

import (
	"fmt"
	"iter"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/bulkhead-dev/bulkhead/internal/switches"
)

// Protected is a path, relative to any folder, with patterns of path.Match as
// elements, and why it is protected. What stands below ".git/" counts for every
// git directory.
type Protected struct {
	Path   string `json:"path"`
	Reason string `json:"reason"`
}

// List is a compiled list. The zero value protects nothing.
type List struct {
	plain, git patterns
	installed  map[string]bool
}

type pattern struct {
	elems  []string
	reason string
}

// patterns are found by their first element, which is a name in nearly all: each
// write asks for each element of its path.
type patterns struct {
	all   []pattern
	named map[string][]pattern
	wild  []pattern // those whose first element is none
}

func (ps *patterns) add(p pattern) {
	ps.all = append(ps.all, p)
	if first := p.elems[0]; strings.ContainsAny(first, `*?[\`) {
		ps.wild = append(ps.wild, p)
	} else {
		if ps.named == nil {
			ps.named = map[string][]pattern{}
		}
		ps.named[first] = append(ps.named[first], p)
	}
}

// startOf gives those that the names of a path begin with.
func (ps *patterns) startOf(names []string) iter.Seq[pattern] {
	return func(yield func(pattern) bool) {
		for _, some := range [][]pattern{ps.named[names[0]], ps.wild} {
			for _, p := range some {
				if len(p.elems) <= len(names) && matches(p.elems, names[:len(p.elems)]) && !yield(p) {
					return
				}
			}
		}
	}
}

// New compiles a list. Below a folder named in installed only what git obeys
// counts: package managers unpack there what packages bring, and whoever may
// write there can change the packages' own code.
func New(list []Protected, installed []string) (*List, error) {
	if switches.Off("protected") {
		list, installed = nil, nil
	}
	l := &List{installed: map[string]bool{}}
	for _, n := range installed {
		l.installed[fold(n)] = true
	}
	for _, p := range list {
		elems := strings.Split(fold(p.Path), "/")
		for _, e := range elems {
			if _, err := path.Match(e, ""); err != nil || e == "" || e == "." || e == ".." {
				return nil, fmt.Errorf("protected path %q: not a relative path of patterns", p.Path)
			}
		}
		if elems[0] == fold(".git") && len(elems) > 1 {
			l.git.add(pattern{elems[1:], p.Reason})
		} else {
			l.plain.add(pattern{elems, p.Reason})
		}
	}
	return l, nil
}

// Plain reports whether the path, as elements below a writable folder, is
// protected or lies in something that is.
func (l *List) Plain(rel []string) (reason string, ok bool) {
	rel = folded(rel)
	end := len(rel)
	if i := slices.IndexFunc(rel, func(e string) bool { return l.installed[e] }); i >= 0 {
		end = i + 1
	}
	for i := range end {
		for p := range l.plain.startOf(rel[i:]) {
			return p.reason, true
		}
	}
	return "", false
}

// Installed reports whether a path is, or lies in, a folder of packages.
func (l *List) Installed(rel []string) bool {
	return slices.ContainsFunc(folded(rel), func(e string) bool { return l.installed[e] })
}

// Hit says that rel[Dir:] begins with a protected path of git, if rel[:Dir] is a
// git directory. Rest is what follows the matched part.
type Hit struct {
	Dir    int
	Name   string // the first element of the matched part, folded as Fold does
	Rest   []string
	Reason string
}

// Git returns every place in which the path would be protected if what stands
// before it were a git directory.
func (l *List) Git(rel []string) []Hit {
	f := folded(rel)
	var hits []Hit
	for i := range f {
		for p := range l.git.startOf(f[i:]) {
			hits = append(hits, Hit{Dir: i, Name: f[i], Rest: rel[i+len(p.elems):], Reason: p.reason})
		}
	}
	return hits
}

// Way is a protected path that would come to lie below a name.
type Way struct {
	Rest   []string // patterns of what would follow
	Dir    int      // of a git path: the elements before it would be the git directory; -1 otherwise
	Reason string
}

// Ways returns what is protected below rel, should it be or lead to a folder.
func (l *List) Ways(rel []string) []Way {
	f := folded(rel)
	var ways []Way
	add := func(ps []pattern, git bool) {
		for _, p := range ps {
			for n := 1; n < len(p.elems) && n <= len(f); n++ {
				i := len(f) - n
				if !git && slices.ContainsFunc(f[:i], func(e string) bool { return l.installed[e] }) {
					continue
				}
				if matches(p.elems[:n], f[i:]) {
					w := Way{Rest: p.elems[n:], Dir: -1, Reason: p.reason}
					if git {
						w.Dir = i
					}
					ways = append(ways, w)
				}
			}
		}
	}
	add(l.plain.all, false)
	add(l.git.all, true)
	return ways
}

// GitPaths returns the protected paths of a git directory, as patterns.
func (l *List) GitPaths() []Way {
	var ways []Way
	for _, p := range l.git.all {
		ways = append(ways, Way{Rest: p.elems, Reason: p.reason})
	}
	return ways
}

// Match reports whether a name is what one element of a Way asks for.
func Match(elem, name string) bool {
	ok, _ := path.Match(elem, fold(name))
	return ok
}

// Is reports whether two names are one to a file system that ignores case.
func Is(name, other string) bool { return fold(name) == fold(other) }

func matches(elems, names []string) bool {
	for i, e := range elems {
		if ok, _ := path.Match(e, names[i]); !ok {
			return false
		}
	}
	return true
}

func folded(names []string) []string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = fold(n)
	}
	return out
}

// fold returns one spelling for all that differ in case only, Unicode's simple
// folding; what is not UTF-8 stays.
func fold(s string) string {
	ascii := true
	for i := 0; i < len(s); i++ {
		if c := s[i]; c >= utf8.RuneSelf || 'A' <= c && c <= 'Z' {
			ascii = false
			break
		}
	}
	if ascii || !utf8.ValidString(s) {
		return strings.ToLower(s)
	}
	return strings.Map(func(r rune) rune {
		least := r
		for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
			least = min(least, f)
		}
		if 'A' <= least && least <= 'Z' {
			least += 'a' - 'A'
		}
		return least
	}, s)
}
