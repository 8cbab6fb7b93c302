package sigv4

import (
	"fmt"
	"strings"
)

// Scope is what a host says about the credential scope of requests to it.
type Scope struct {
	Service string
	// Region is empty where the host serves buckets of every region.
	Region string
}

// signingNames are the services whose hosts begin with another word than their
// signatures name.
var signingNames = map[string]string{
	"bedrock-runtime": "bedrock",
	"api.ecr":         "ecr",
}

// global are hosts without a region in their name; they are signed for
// us-east-1.
var global = map[string]string{
	"iam.amazonaws.com": "iam",
	"sts.amazonaws.com": "sts",
}

// ScopeOf reads a host below amazonaws.com:
//
//	SERVICE.REGION.amazonaws.com   [BUCKET.]s3[.dualstack].REGION.amazonaws.com
//	[BUCKET.]s3.amazonaws.com      BUCKET.s3-accelerate[.dualstack].amazonaws.com
//
// Access points and everything else have no scope here, so nothing is signed
// for them.
func ScopeOf(host string) (Scope, error) {
	none := fmt.Errorf("%q is no AWS endpoint that is known here", clip(host))
	if s, ok := global[host]; ok {
		return Scope{s, "us-east-1"}, nil
	}
	name, ok := strings.CutSuffix(host, ".amazonaws.com")
	if !ok {
		return Scope{}, none
	}
	labels := strings.Split(name, ".")
	for _, l := range labels {
		if !only(l, lower+digits+"-") {
			return Scope{}, none
		}
	}
	last := len(labels) - 1
	switch {
	case labels[last] == "s3":
		if last > 1 {
			return Scope{}, none
		}
		return Scope{Service: "s3"}, nil
	case last == 1 && labels[1] == "s3-accelerate", last == 2 && labels[1] == "s3-accelerate" && labels[2] == "dualstack":
		return Scope{Service: "s3"}, nil
	case last < 1:
		return Scope{}, none
	}
	region, front := labels[last], labels[:last]
	if !isRegion(region) {
		return Scope{}, none
	}
	if n := len(front); front[n-1] == "dualstack" && n > 1 && front[n-2] == "s3" {
		front = front[:n-1]
	}
	if n := len(front); front[n-1] == "s3" && n <= 2 {
		return Scope{"s3", region}, nil
	}
	service := strings.Join(front, ".")
	if s, ok := signingNames[service]; ok {
		service = s
	}
	if strings.Contains(service, ".") {
		return Scope{}, none
	}
	return Scope{service, region}, nil
}

// isRegion knows the form: us-east-1, ap-southeast-4, us-gov-west-1.
func isRegion(s string) bool {
	parts := strings.Split(s, "-")
	if len(parts) < 3 || len(parts) > 4 || !only(parts[len(parts)-1], digits) {
		return false
	}
	for _, p := range parts[:len(parts)-1] {
		if !only(p, lower) {
			return false
		}
	}
	return true
}

func (s Scope) admits(a Authorization) error {
	switch {
	case s.Service == "":
		return fmt.Errorf("nothing says which service this host is")
	case a.Service != s.Service:
		return fmt.Errorf("the request is signed for the service %q, and this host is %s", clip(a.Service), s.Service)
	case s.Region != "" && a.Region != s.Region:
		return fmt.Errorf("the request is signed for the region %q, and this host is in %s", clip(a.Region), s.Region)
	case !isRegion(a.Region):
		return fmt.Errorf("the request is signed for %q, which is no region", clip(a.Region))
	}
	return nil
}

// Key is a real key. It is written as text "ID:SECRET" or "ID:SECRET:TOKEN",
// which is the form in which a broker hands it out; none of the three has a
// colon in it.
type Key struct{ ID, Secret, Token string }

// ParseKey reads the text form.
func ParseKey(text string) (Key, error) {
	parts := strings.Split(text, ":")
	k := Key{}
	switch len(parts) {
	case 3:
		k.Token = parts[2]
		fallthrough
	case 2:
		k.ID, k.Secret = parts[0], parts[1]
	}
	return k, k.Check()
}

// Text is the inverse of ParseKey.
func (k Key) Text() string {
	if k.Token == "" {
		return k.ID + ":" + k.Secret
	}
	return k.ID + ":" + k.Secret + ":" + k.Token
}

// Check says what is wrong with a key, without quoting it.
func (k Key) Check() error {
	const base64 = alnum + "+/="
	switch {
	case len(k.ID) < 16 || len(k.ID) > 128 || !only(k.ID, alnum):
		return fmt.Errorf("the access key id is none")
	case len(k.Secret) < 16 || len(k.Secret) > 256 || !only(k.Secret, base64):
		return fmt.Errorf("the secret access key is none")
	case len(k.Token) > 8<<10 || k.Token != "" && !only(k.Token, base64+"-_"):
		return fmt.Errorf("the session token is none")
	}
	return nil
}
