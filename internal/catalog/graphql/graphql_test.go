package graphql

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/vektah/gqlparser/v2/ast"
	"github.com/vektah/gqlparser/v2/formatter"
	"github.com/vektah/gqlparser/v2/parser"
)

// body makes the JSON of a request; variables are JSON or "".
func body(query, variables string) []byte {
	q, _ := json.Marshal(query)
	if variables == "" {
		return fmt.Appendf(nil, `{"query":%s}`, q)
	}
	return fmt.Appendf(nil, `{"query":%s,"variables":%s}`, q, variables)
}

// words is what a document asks for: "query a b".
func words(d Document) string {
	out := []string{"query"}
	if d.Mutation {
		out[0] = "mutation"
	}
	for _, f := range d.Roots {
		out = append(out, f.Name)
	}
	return strings.Join(out, " ")
}

func TestRoots(t *testing.T) {
	for _, c := range []struct{ query, want string }{
		{`{viewer{login}}`, "query viewer"},
		{`query A($n:Int=1) {a:repository(owner:"x",name:"y"){id} b:search(query:"z"){issueCount}}`, "query repository search"},
		{"# query { viewer }\nmutation { createIssue(input:{}){issue{id}} }", "mutation createIssue"},
		{"# mutation { deleteRef }\r{viewer{login}}", "query viewer"},
		{"\t,,,mutation\n{viewer:deleteRef(input:{}){clientMutationId}}", "mutation deleteRef"},
		{`{...F} fragment F on Query{...G ... on Query{node(id:"x"){id}}} fragment G on Query{search:viewer{login}}`, "query viewer node"},
		{`query {... @include(if:false){viewer{login}}}`, "query viewer"},
		{`query ($s:Boolean!) {viewer @skip(if:$s) {login}}`, "query viewer"},
		{`{a:viewer{login} b:viewer{login}}`, "query viewer viewer"},
		{`query { x(a:"}\" mutation { deleteRef }") }`, "query x"},
		{`query { x(a:"""block " \""" mutation { deleteRef } """) }`, "query x"},
		{`query mutation { x }`, "query x"},
		{`mutation query { x }`, "mutation x"},
		{`{ mutation { deleteRef } }`, "query mutation"},
	} {
		d, err := Parse(body(c.query, ""))
		if err != nil || words(d) != c.want {
			t.Errorf("%s: got %q, %v, want %q", c.query, words(d), err, c.want)
		}
	}
}

func TestRefused(t *testing.T) {
	deep := strings.Repeat("{a", 60) + strings.Repeat("}", 60)
	var bomb strings.Builder
	bomb.WriteString("{...F0}")
	for i := range 60 {
		fmt.Fprintf(&bomb, "fragment F%d on Query{...F%d ...F%d}", i, i+1, i+1)
	}
	bomb.WriteString("fragment F60 on Query{viewer{login}}")
	for name, b := range map[string]string{
		"empty":                  ``,
		"batch":                  `[{"query":"{a}"}]`,
		"two values":             `{"query":"{a}"}{"query":"mutation{b}"}`,
		"BOM in front":           "\ufeff" + `{"query":"{a}"}`,
		"BOM in the query":       `{"query":"\ufeffmutation{b}"}`,
		"BOM in a comment":       `{"query":"{a} #\ufeff"}`,
		"other line ends":        `{"query":"# \u2028 mutation{b}\n{a}"}`,
		"form feed":              `{"query":"\fmutation{b}"}`,
		"NUL":                    `{"query":"{a}\u0000mutation{b}"}`,
		"query twice":            `{"query":"{a}","query":"mutation{b}"}`,
		"query twice, escaped":   `{"query":"{a}","qu\u0065ry":"mutation{b}"}`,
		"another spelling":       `{"query":"{a}","Query":"mutation{b}"}`,
		"no query":               `{"variables":{}}`,
		"null query":             `{"query":null}`,
		"list query":             `{"query":["{a}"]}`,
		"persisted":              `{"extensions":{"persistedQuery":{"version":1,"sha256Hash":"x"}}}`,
		"persisted with text":    `{"query":"{a}","extensions":{"persistedQuery":{"version":1,"sha256Hash":"x"}}}`,
		"stored by id":           `{"id":"abc","query":"{a}"}`,
		"two operations":         `{"query":"query A{a} mutation B{b}","operationName":"A"}`,
		"two without a name":     `{"query":"{a} mutation B{b}"}`,
		"operation of no name":   `{"query":"query A{a}","operationName":"B"}`,
		"operationName a list":   `{"query":"query A{a}","operationName":["A"]}`,
		"subscription":           `{"query":"subscription{a}"}`,
		"no operation":           `{"query":"fragment F on Query{a}"}`,
		"schema":                 `{"query":"type Query{a:Int}"}`,
		"directive":              `{"query":"{a @defer}"}`,
		"operation directive":    `{"query":"query @cached {a}"}`,
		"argument twice":         `{"query":"{repository(owner:\"acme\",name:\"w\",owner:\"evil\"){id}}"}`,
		"input field twice":      `{"query":"mutation{a(input:{x:{id:1,id:2}}){b}}"}`,
		"variable twice":         `{"query":"query($o:String=\"a\",$o:String=\"b\"){a}"}`,
		"variable key twice":     `{"query":"{a}","variables":{"o":"acme","o":"evil"}}`,
		"variable key twice in":  `{"query":"{a}","variables":{"i":{"o":"acme","o":"evil"}}}`,
		"variables a text":       `{"query":"{a}","variables":"{}"}`,
		"fragment twice":         `{"query":"{...F} fragment F on Query{a} fragment F on Query{b}"}`,
		"fragment circle":        `{"query":"{...F} fragment F on Query{...G} fragment G on Query{...F}"}`,
		"fragment missing":       `{"query":"{...F}"}`,
		"fragment with variable": `{"query":"{...F} fragment F($a:Int=1) on Query{a}"}`,
		"too deep":               string(body(deep, "")),
		"fragments too deep":     string(body(bomb.String(), "")),
		"too deep variables":     `{"query":"{a}","variables":{"a":` + strings.Repeat("[", 60) + strings.Repeat("]", 60) + `}}`,
		"too many roots":         string(body("{"+strings.Repeat("a ", 200)+"}", "")),
		"too many tokens":        string(body("{a("+strings.Repeat("x:1 ", 10000)+")}", "")),
		"too long":               string(body("{a}"+strings.Repeat(" ", MaxBody), "")),
		"bad UTF-8":              "{\"query\":\"{a}\xff\"}",
		"single quote":           `{"query":"{a(b:'x')}"}`,
		"empty selection":        `{"query":"{}"}`,
	} {
		if d, err := Parse([]byte(b)); err == nil || len(d.Roots) > 0 {
			t.Errorf("%s: accepted as %q", name, words(d))
		}
	}
}

func TestText(t *testing.T) {
	const q = `query($o:String!,$n:String="widgets",$i:In,$d:String=null){repository(owner:$o,name:$n){id} m(input:{a:{b:$n},c:$i,e:ENUM,f:"""blk""",l:["x"]},v:$i,d:$d)}`
	d, err := Parse(body(q, `{"o":"acme","i":{"x":{"y":"deep"},"n":5},"unused":1}`))
	if err != nil {
		t.Fatal(err)
	}
	for place, want := range map[string]string{
		"0 owner": "acme", "0 name": "widgets", "0 other": "-", "0 ": "-",
		"1 input.a.b": "widgets", "1 input.c.x.y": "deep", "1 v.x.y": "deep", "1 v.n": "-", "1 input.e": "-", "1 input.f": "-", "1 input.l": "-", "1 d": "-", "1 input": "-",
	} {
		f := d.Roots[place[0]-'0']
		got, ok := f.Text(strings.Split(place[2:], ".")...)
		if !ok {
			got = "-"
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", place, got, want)
		}
	}
	// What the variables say counts, not the default; null is nothing.
	for vars, want := range map[string]string{`{"n":"evil"}`: "evil", `{}`: "widgets", `{"n":null}`: "-", `{"n":["widgets"]}`: "-", `null`: "widgets"} {
		d, err := Parse(body(`query($n:String="widgets"){repository(name:$n){id}}`, vars))
		if err != nil {
			t.Fatal(err)
		}
		got, ok := d.Roots[0].Text("name")
		if !ok {
			got = "-"
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", vars, got, want)
		}
	}
	if d, err := Parse(body(`{repository(name:$n){id}}`, `{"n":"x"}`)); err != nil {
		t.Error(err)
	} else if _, ok := d.Roots[0].Text("name"); ok {
		t.Error("a variable that is not defined has a value")
	}
}

var testRegions = Regions{
	"repo": {"id": "", "issues": "", "nodes": "", "title": "", "owner": "who"},
	"who":  {"login": "", "id": ""},
}

func TestWithin(t *testing.T) {
	for _, c := range []struct{ query, outside string }{
		{`{r{id issues{nodes{title __typename}} owner{login}}}`, ""},
		{`{r{id owner{title}}}`, "title"},
		{`{r{id:parent{id}}}`, "parent"},
		{`{r{parent:id}}`, ""},
		{`{r{...F owner{...F}}} fragment F on X{id}`, ""},
		{`{r{...F owner{...F}}} fragment F on X{title}`, "title"},
		{`{r{...F}} fragment F on X{...G} fragment G on X{issues{... on Y{repositories{id}}}}`, "repositories"},
	} {
		d, err := Parse(body(c.query, ""))
		if err != nil {
			t.Fatal(err)
		}
		outside, ok := d.Roots[0].Within(testRegions, "repo")
		if ok != (c.outside == "") || outside != c.outside {
			t.Errorf("%s: got %q, %v", c.query, outside, ok)
		}
	}
	d, _ := Parse(body(`{r{id}}`, ""))
	if _, ok := d.Roots[0].Within(nil, ""); ok {
		t.Error("no regions allow everything")
	}
}

// FuzzParse: no panic; what is accepted means the same when it is written down
// again by another hand.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		`{viewer{login}}`, `mutation($i:I!){createIssue(input:$i){issue{id}}}`, `{...F} fragment F on Query{a(x:"y") ...G} fragment G on Query{b @skip(if:true)}`,
		"# c\r\nquery A{a:b(c:{d:[1,2.5,true,null,E,\"\\u0041\",\"\"\"x\"\"\"]}){d}}",
	} {
		f.Add(body(s, `{"i":{"a":["b"]}}`))
	}
	f.Add([]byte(`{"query":"{a}","operationName":null,"variables":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := Parse(data)
		if err != nil {
			if len(d.Roots) > 0 {
				t.Fatal("roots beside an error")
			}
			return
		}
		// The reference decodes leniently and judges by the formatted text.
		var env struct{ Query string }
		if err := json.Unmarshal(data, &env); err != nil {
			t.Fatal(err)
		}
		doc, perr := parser.ParseQuery(&ast.Source{Input: env.Query})
		if perr != nil {
			t.Fatal(perr)
		}
		var text strings.Builder
		formatter.NewFormatter(&text).FormatQueryDocument(doc)
		again, err := Parse(body(text.String(), ""))
		if err != nil {
			if strings.Contains(text.String(), `\u`) || len(text.String()) > MaxBody/2 {
				return // a control character that the formatter writes as an escape
			}
			t.Fatalf("%v\n%s\n%s", err, env.Query, text.String())
		}
		if words(again) != words(d) {
			t.Fatalf("%q became %q", words(d), words(again))
		}
		for i := range d.Roots {
			for _, a := range d.Roots[i].args {
				if a.Value.Kind != ast.StringValue {
					continue
				}
				x, _ := d.Roots[i].Text(a.Name)
				j := slices.IndexFunc(again.Roots[i].args, func(b *ast.Argument) bool { return b.Name == a.Name })
				if j < 0 || again.Roots[i].args[j].Value.Raw != x {
					t.Fatalf("argument %s changed", a.Name)
				}
			}
			d.Roots[i].Within(testRegions, "repo")
		}
	})
}
