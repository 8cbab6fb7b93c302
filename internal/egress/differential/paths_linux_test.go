package differential

import (
	"strings"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/capability"
)

// GitLab names a project by its path with the slash escaped. Such a request
// arrives as it was sent, decided as the project that every server reads in it;
// another project, a second escape and a path out of the project do not.
func TestEscapedSlash(t *testing.T) {
	s, err := start()
	if err != nil {
		t.Fatal(err)
	}
	inUse.Lock()
	defer inUse.Unlock()
	l, err := newLane(s, 0, []capability.Rule{{Pos: at(1), Service: "gitlab", Operations: []string{"api-read"}, Resources: []string{"acme/widgets"}, Credential: "key"}})
	if err != nil {
		t.Fatal(err)
	}
	dst := destination(t, "gitlab.com:443")
	for target, passes := range map[string]bool{
		"/api/v4/projects/acme%2Fwidgets": true, "/api/v4/projects/acme%2Fwidgets/issues": true, "/api/v4/projects/acme%2fwidgets/issues": true,
		"/api/v4/projects/acme%2Fother": false, "/api/v4/projects/acme%2Fother/issues": false, "/api/v4/projects/acme%252Fwidgets/issues": false, "/api/v4/projects/acme%25%32%46widgets/issues": false, "/api/v4/projects/acme%2Fwidgets%2F..%2Fother/issues": false,
		"/api/v4/projects/acme%2Fwidgets/../acme%2Fother/issues": false, "/api/v4/projects/acme%2F%2Fwidgets/issues": false, "/api/v4/projects/acme%2F.%2Fwidgets/issues": false, "/api/v4/projects/%2Facme%2Fwidgets/issues": false, "/api/v4/projects/acme%5Cwidgets/issues": false, "/api/v4/projects/acme%2Fwidgets%00/issues": false,
		"/api/v4/projects/acme%2Fwidgets%3F/issues": false, "/api/v4/projects/acme%2Fwidgets%23/issues": false, "/api/v4/projects/acme%2Fwidgets;x/issues": false, "/api/v4/projects/acme/widgets/issues": false, "/api%2Fv4/projects/acme%2Fwidgets/issues": false, "/api/v4/projects%2Facme%2Fwidgets/issues": false, "/api/v4/projects/acme%2Fwidgets%2Fissues": false,
	} {
		for _, h2 := range []bool{false, true} {
			in := fields(":method=GET", ":scheme=https", ":authority=gitlab.com", ":path="+target, "private-token="+placeholder)
			r, err := l.through(dst, true, h2, "node", l.framesTo("gitlab.com", in))
			if err != nil {
				t.Fatal(err)
			}
			for who, got := range map[string][]reading{"net/http": r.wire.readings, "nginx": r.nginx.readings, "node": r.node.readings} {
				switch {
				case !passes && len(got) > 0 || passes && len(got) != 1:
					t.Errorf("%s: %s read %v; refused: %q", target, who, got, r.refusal)
				case passes && got[0].target != target:
					t.Errorf("%s: %s read %v", target, who, got)
				case passes && who == "nginx" && !strings.HasPrefix(got[0].path, "/api/v4/projects/acme/widgets"):
					t.Errorf("%s: nginx reads the path %q", target, got[0].path)
				}
			}
			if passes && (len(r.judged) != 1 || len(r.judged[0].records) != 1 || !strings.Contains(r.judged[0].records[0].Reason.Message, " on acme/widgets ")) {
				t.Errorf("%s was not decided as acme/widgets: %+v", target, r.judged[0].records)
			}
		}
	}
}

// The measure measures: sent past the gateway, these are read differently, or
// read where no grant covers them.
func TestWithoutTheGatewayTheyDiffer(t *testing.T) {
	s, err := start()
	if err != nil {
		t.Fatal(err)
	}
	inUse.Lock()
	defer inUse.Unlock()
	l, err := newLane(s, 0, grants("http"))
	if err != nil {
		t.Fatal(err)
	}
	for what, in := range map[string]string{
		"dot segments":       get("/docs/../secret") + "\r\n",
		"escaped ones":       get("/docs/%2e%2e/secret") + "\r\n",
		"an escaped slash":   get("/docs/..%2fsecret") + "\r\n",
		"empty segments":     get("//secret/docs") + "\r\n",
		"an empty authority": get("//docs/a") + "\r\n",
		"chunk extension":    post("/items/1") + "Transfer-Encoding: chunked\r\n\r\n0;a=\"\n\"\r\n\r\n" + sentinel,
		"bare line feeds":    "GET /docs/a HTTP/1.1\nHost: up.test\n\n" + sentinel,
		"an early end":       post("/items/1") + "Content-Length: 5\r\n\r\n" + sentinel,
		"another method":     "DELETE /docs/a HTTP/1.1\r\nHost: up.test\r\n\r\n",
		"another host":       "GET /docs/a HTTP/1.1\r\nHost: evil.test\r\n\r\n",
	} {
		r, err := l.past([]byte(in))
		if err != nil {
			t.Fatal(err)
		}
		if d := r.differences(true); len(d) == 0 {
			t.Errorf("%s: no difference is found in what was sent past the gateway: %v", what, r.node.readings)
		}
		outside := false
		for _, got := range append(append(r.nginx.readings, r.node.readings...), r.wire.readings...) {
			outside = outside || got.outside() != "" || got.host != name
		}
		if !outside && len(r.nginx.readings) == len(r.node.readings) && len(r.rest) == 0 && len(r.wire.readings) == len(r.node.readings) {
			t.Errorf("%s: all read the same, and what is granted: %v", what, r.node.readings)
		}
	}
}
