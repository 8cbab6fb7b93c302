package sigv4

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

const (
	testID     = "AKIAABCDEFGHIJKLMNOP"
	testSecret = "placeholderplaceholderplaceholder0000000"
)

var now = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

// signed makes a request that AWS's own SDK signed.
func signed(t testing.TB, method, rawURL, service, region string, header map[string]string, body string, edit ...func(*http.Request)) Request {
	t.Helper()
	req, err := http.NewRequest(method, rawURL, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	payload := req.Header.Get("X-Amz-Content-Sha256")
	if payload == "" {
		payload = hash([]byte(body))
	}
	for _, e := range edit {
		e(req)
	}
	// The SDKs escape the path as the canonical request has it.
	req.URL.RawPath = escape(req.URL.Path, true)
	err = v4.NewSigner().SignHTTP(context.Background(), aws.Credentials{AccessKeyID: testID, SecretAccessKey: testSecret}, req, payload, service, region, now,
		func(o *v4.SignerOptions) { o.DisableURIPathEscaping = service == "s3" })
	if err != nil {
		t.Fatal(err)
	}
	return Request{
		Method: req.Method, Host: req.URL.Host, Path: req.URL.Path, Query: req.URL.Query(), Header: req.Header,
		Length: req.ContentLength, Body: []byte(body), Whole: true,
	}
}

func verify(t testing.TB, r Request) error {
	t.Helper()
	scope, err := ScopeOf(r.Host)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Verify(r, testID, testSecret, scope, now.Add(time.Minute))
	return err
}

func TestAWSsOwnSignaturesAreTrue(t *testing.T) {
	for _, c := range []struct {
		method, url, service, region string
		header                       map[string]string
		body                         string
	}{
		{"GET", "https://sts.amazonaws.com/", "sts", "us-east-1", nil, ""},
		{"POST", "https://sts.eu-west-1.amazonaws.com/", "sts", "eu-west-1", map[string]string{"Content-Type": "application/x-www-form-urlencoded"}, "Action=GetCallerIdentity&Version=2011-06-15"},
		{"GET", "https://data.s3.eu-central-1.amazonaws.com/a%20b/c%2Bd/%C3%BC?prefix=x/y&list-type=2&k=a+b", "s3", "eu-central-1", map[string]string{"X-Amz-Content-Sha256": EmptyHash}, ""},
		{"PUT", "https://data.s3.amazonaws.com/k", "s3", "eu-central-1", map[string]string{"X-Amz-Content-Sha256": Unsigned, "X-Amz-Meta-A": "  two   spaces "}, "hello"},
		{"PUT", "https://data.s3.dualstack.us-west-2.amazonaws.com/k?uploads", "s3", "us-west-2", map[string]string{"X-Amz-Content-Sha256": UnsignedTrailer}, "5\r\nhello\r\n0\r\n\r\n"},
		{"POST", "https://bedrock-runtime.us-east-1.amazonaws.com/model/anthropic.claude%3A1/invoke", "bedrock", "us-east-1", map[string]string{"Content-Type": "application/json"}, "{}"},
		{"POST", "https://dynamodb.us-east-1.amazonaws.com/", "dynamodb", "us-east-1", map[string]string{"X-Amz-Target": "DynamoDB_20120810.GetItem"}, `{"TableName":"t"}`},
		{"GET", "https://lambda.us-east-1.amazonaws.com/a/b%25c?q=%2B&q=a&a-b=1&a=2", "lambda", "us-east-1", nil, ""},
	} {
		r := signed(t, c.method, c.url, c.service, c.region, c.header, c.body)
		if err := verify(t, r); err != nil {
			t.Errorf("%s %s: %v", c.method, c.url, err)
		}
	}
}

// AWS's SDK for JavaScript, which speaks HTTP/2 to some services, signs :authority
// in the place of host. This is what it sent.
func TestAuthorityIsSignedInThePlaceOfHost(t *testing.T) {
	r := Request{
		Method: "POST", Host: "bedrock-runtime.us-east-1.amazonaws.com", Path: "/model/anthropic.claude-v1:0/invoke", Length: 2, Body: []byte("{}"), Whole: true,
		Header: http.Header{
			"Content-Type": {"application/json"}, "X-Amz-User-Agent": {"aws-sdk-js/3.1163.0"}, "Amz-Sdk-Invocation-Id": {"5fa81924-7767-4ea8-a0e4-a087b89a0aac"}, "Amz-Sdk-Request": {"attempt=1; max=1"},
			"X-Amz-Date": {"20260304T050607Z"}, "X-Amz-Content-Sha256": {"44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"},
			"Authorization": {"AWS4-HMAC-SHA256 Credential=AKIAABCDEFGHIJKLMNOP/20260304/us-east-1/bedrock/aws4_request, SignedHeaders=:authority;amz-sdk-invocation-id;amz-sdk-request;content-length;content-type;" +
				"x-amz-content-sha256;x-amz-date;x-amz-user-agent, Signature=2a2f6412edcccfbe3d080b60a139fbb220faff53f001317836b6125183138567"},
		},
	}
	if err := verify(t, r); err != nil {
		t.Error(err)
	}
	r.Host = "bedrock-runtime.us-west-2.amazonaws.com"
	if err := verify(t, r); err == nil {
		t.Error("another host is signed")
	}
	a := r.Header["Authorization"]
	for _, name := range []string{":authority;:path;", ":path;", ""} {
		r.Header["Authorization"] = []string{strings.Replace(a[0], ":authority;", name, 1)}
		r.Host = "bedrock-runtime.us-east-1.amazonaws.com"
		if err := verify(t, r); err == nil {
			t.Errorf("%q: true", name)
		}
	}
}

// Every change of a signed request, and every other signature, is refused.
func TestRefused(t *testing.T) {
	fresh := func() Request {
		return signed(t, "PUT", "https://data.s3.eu-central-1.amazonaws.com/k?x-id=PutObject", "s3", "eu-central-1",
			map[string]string{"X-Amz-Content-Sha256": hash([]byte("hello")), "X-Amz-Meta-A": "b"}, "hello")
	}
	if err := verify(t, fresh()); err != nil {
		t.Fatal(err)
	}
	auth := func(f func(string) string) func(*Request) {
		return func(r *Request) { r.Header.Set("Authorization", f(r.Header.Get("Authorization"))) }
	}
	replace := func(old, new string) func(*Request) {
		return auth(func(s string) string { return strings.Replace(s, old, new, 1) })
	}
	resign := func(url, service, region string) func(*Request) {
		return func(r *Request) {
			host := r.Host
			*r = signed(t, "PUT", url, service, region, map[string]string{"X-Amz-Content-Sha256": Unsigned}, "hello")
			r.Host = host
		}
	}
	for name, c := range map[string]struct {
		edit func(*Request)
		want string
	}{
		"method":           {func(r *Request) { r.Method = "GET" }, "does not match"},
		"path":             {func(r *Request) { r.Path = "/other" }, "does not match"},
		"query":            {func(r *Request) { r.Query.Set("versionId", "1") }, "does not match"},
		"host":             {func(r *Request) { r.Host = "other.s3.eu-central-1.amazonaws.com" }, "does not match"},
		"header":           {func(r *Request) { r.Header.Set("X-Amz-Meta-A", "c") }, "does not match"},
		"second value":     {func(r *Request) { r.Header.Add("X-Amz-Meta-A", "c") }, "does not match"},
		"length":           {func(r *Request) { r.Length++ }, "does not match"},
		"no length":        {func(r *Request) { r.Length = -1 }, "content-length"},
		"body":             {func(r *Request) { r.Body = []byte("other") }, "not the hash of the body"},
		"new amz header":   {func(r *Request) { r.Header.Set("X-Amz-Acl", "public-read") }, "not signed"},
		"header gone":      {func(r *Request) { r.Header.Del("X-Amz-Meta-A") }, "not in the request"},
		"another key":      {replace(testID, "AKIATHIEFTHIEFTHIEF0"), "another key"},
		"signature":        {replace("Signature=", "Signature=0"), "64"},
		"zero signature":   {auth(func(s string) string { return s[:len(s)-64] + strings.Repeat("0", 64) }), "does not match"},
		"upper case":       {auth(func(s string) string { return s[:len(s)-64] + strings.ToUpper(s[len(s)-64:]) }), "64"},
		"twice":            {func(r *Request) { r.Header.Add("Authorization", r.Header.Get("Authorization")) }, "twice"},
		"none":             {func(r *Request) { r.Header.Del("Authorization") }, "not signed"},
		"bearer":           {func(r *Request) { r.Header.Set("Authorization", "Bearer x") }, "not signed with"},
		"sigv2":            {func(r *Request) { r.Header.Set("Authorization", "AWS "+testID+":c2ln") }, "SigV2"},
		"sigv4a":           {func(r *Request) { r.Header.Set("Authorization", "AWS4-ECDSA-P256-SHA256 Credential=x") }, "SigV4A"},
		"service":          {resign("https://data.s3.eu-central-1.amazonaws.com/k", "sts", "eu-central-1"), "service"},
		"region":           {resign("https://data.s3.eu-central-1.amazonaws.com/k", "s3", "us-east-1"), "region"},
		"old":              {func(r *Request) { r.Header.Set("X-Amz-Date", "20260304T044607Z") }, "away from now"},
		"future":           {func(r *Request) { r.Header.Set("X-Amz-Date", "20260304T052508Z") }, "away from now"},
		"another day":      {func(r *Request) { r.Header.Set("X-Amz-Date", "20260305T050607Z") }, "day"},
		"two dates":        {func(r *Request) { r.Header.Add("X-Amz-Date", "20260304T050607Z") }, "X-Amz-Date"},
		"no date":          {func(r *Request) { r.Header.Del("X-Amz-Date") }, "X-Amz-Date"},
		"host not signed":  {replace(";host;", ";"), "host is not signed"},
		"signed chunks":    {func(r *Request) { r.Header.Set("X-Amz-Content-Sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD") }, "chunks"},
		"strange payload":  {func(r *Request) { r.Header.Set("X-Amz-Content-Sha256", "ANY") }, "neither"},
		"two payloads":     {func(r *Request) { r.Header.Add("X-Amz-Content-Sha256", Unsigned) }, "twice"},
		"unread, unhashed": {func(r *Request) { r.Header.Del("X-Amz-Content-Sha256"); r.Whole = false }, "needs X-Amz-Content-Sha256"},
	} {
		r := fresh()
		c.edit(&r)
		err := func() error {
			scope, err := ScopeOf("data.s3.eu-central-1.amazonaws.com")
			if err != nil {
				return err
			}
			_, err = Verify(r, testID, testSecret, scope, now)
			return err
		}()
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	r := fresh()
	if _, err := Verify(r, "", "", Scope{"s3", "eu-central-1"}, now); err == nil {
		t.Error("no placeholder, and accepted")
	}
	if _, err := Verify(r, testID, testSecret, Scope{}, now); err == nil {
		t.Error("no scope, and accepted")
	}
}

func TestScopeOf(t *testing.T) {
	for host, want := range map[string]string{
		"sts.amazonaws.com": "sts us-east-1", "sts.eu-west-1.amazonaws.com": "sts eu-west-1", "iam.amazonaws.com": "iam us-east-1",
		"s3.amazonaws.com": "s3 ", "b.s3.amazonaws.com": "s3 ", "s3.us-gov-west-1.amazonaws.com": "s3 us-gov-west-1", "b.s3.eu-west-1.amazonaws.com": "s3 eu-west-1",
		"s3.dualstack.eu-west-1.amazonaws.com": "s3 eu-west-1", "b.s3.dualstack.eu-west-1.amazonaws.com": "s3 eu-west-1",
		"b.s3-accelerate.amazonaws.com": "s3 ", "b.s3-accelerate.dualstack.amazonaws.com": "s3 ",
		"bedrock-runtime.us-east-1.amazonaws.com": "bedrock us-east-1", "api.ecr.us-east-1.amazonaws.com": "ecr us-east-1",
		"dynamodb.us-east-1.amazonaws.com": "dynamodb us-east-1",
		// Not known, so never signed for.
		"": "", "amazonaws.com": "", "evil.example": "", "sts.amazonaws.com.evil.example": "", "a.b.s3.amazonaws.com": "",
		"ap-123456789012.s3-accesspoint.us-east-1.amazonaws.com": "", "a.b.sts.us-east-1.amazonaws.com": "", "sts.nowhere.amazonaws.com": "",
		"a.b.s3.us-east-1.amazonaws.com": "", "b.s3-website.us-east-1.amazonaws.com": "", "STS.amazonaws.com": "",
	} {
		s, err := ScopeOf(host)
		got := ""
		if err == nil {
			got = s.Service + " " + s.Region
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", host, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Algorithm + " Credential=" + testID + "/20260304/us-east-1/s3/aws4_request, SignedHeaders=host;x-amz-date, Signature=" + strings.Repeat("a", 64))
	f.Add(Algorithm + " Signature=" + strings.Repeat("0", 64) + ",SignedHeaders=host,Credential=" + testID + "/20260304/us-east-1/s3/aws4_request")
	f.Add("AWS " + testID + ":c2ln")
	f.Add("AWS4-ECDSA-P256-SHA256 Credential=x/20260304/s3/aws4_request, SignedHeaders=host, Signature=30")
	f.Fuzz(func(t *testing.T, s string) {
		a, err := Parse(s)
		if err != nil {
			if strings.Contains(err.Error(), "\n") || len(err.Error()) > 300 {
				t.Errorf("%q", err)
			}
			return
		}
		// What is accepted can be written in one way only.
		again, err := Parse(Algorithm + " Credential=" + a.KeyID + "/" + a.Date + "/" + a.Region + "/" + a.Service + "/aws4_request, SignedHeaders=" +
			strings.Join(a.Signed, ";") + ", Signature=" + a.Signature)
		if err != nil || again.KeyID != a.KeyID || again.Signature != a.Signature || strings.Join(again.Signed, ";") != strings.Join(a.Signed, ";") {
			t.Errorf("%q: %+v, %v", s, again, err)
		}
	})
}

// FuzzCanonical compares our canonical request with that of AWS's SDK: a
// request signed there is true here, and not after a change.
func FuzzCanonical(f *testing.F) {
	f.Add("GET", "/a b/c+d", "x", "1 2", "x", "3", "v  w", "", true)
	f.Add("POST", "/ü/%41;=&", "a=b", "&", "a", "+", " ", `{"a":1}`, false)
	f.Add("PUT", "/", "", "", "list-type", "2", "\t", "body", true)
	f.Fuzz(func(t *testing.T, method, path, k1, v1, k2, v2, header, body string, s3 bool) {
		if method == "" || strings.Trim(method, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" || !strings.HasPrefix(path, "/") || strings.HasPrefix(path, "//") {
			return
		}
		for i := 0; i < len(header); i++ {
			if header[i] < ' ' || header[i] >= 0x7f {
				return
			}
		}
		host, service := "data.s3.eu-west-1.amazonaws.com", "s3"
		if !s3 {
			host, service = "lambda.eu-west-1.amazonaws.com", "lambda"
		}
		u := &url.URL{Scheme: "https", Host: host, Path: path, RawQuery: url.Values{k1: {v1}, k2: {v2, v1}}.Encode()}
		r := signed(t, method, "https://"+host+"/", service, "eu-west-1", map[string]string{"X-Amz-Meta-H": header}, body, func(req *http.Request) { req.URL = u })
		r.Path = path
		if err := verify(t, r); err != nil {
			t.Fatalf("%s %s %v %q: %v", method, u, r.Query, header, err)
		}
		r.Query.Add(k1, "x"+strconv.Itoa(len(v1)))
		if err := verify(t, r); err == nil {
			t.Errorf("another query, the same signature")
		}
	})
}
