package process

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/rogpeppe/go-internal/testscript"
)

func init() {
	commands["awsserver"] = cmdAWSServer
	commands["tokenserver"] = cmdTokenServer
}

// realAWS is the key that the stand-in knows, and nobody in a sandbox.
var realAWS = aws.Credentials{AccessKeyID: "AKIAREALREALREALREAL", SecretAccessKey: "RealSecret/0123456789+RealSecret012345678", SessionToken: "UmVhbFRva2Vu/+=="}

// awsserver NAME HOST…: a stand-in for AWS on loopback that takes no request
// but one signed by realAWS (AWS's own signer says what the signature has to
// be), keeps S3 objects in memory, and answers a few calls of other services. It
// records every request that it accepted in $WORK/NAME.log. Sets NAME_ADDR and
// NAME_CA.
func cmdAWSServer(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: awsserver NAME HOST…")
	}
	log, err := os.OpenFile(filepath.Join(ts.Getenv("WORK"), args[0]+".log"), os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	ts.Check(err)
	ts.Defer(func() { log.Close() })
	serveTLS(ts, args[0], args[1:], false, &awsServer{log: log, objects: map[string][]byte{}})
}

type awsServer struct {
	mu      sync.Mutex
	log     *os.File
	objects map[string][]byte
}

// trueSignature asks AWS's signer what the Authorization header has to be.
func trueSignature(r *http.Request, body []byte) error {
	auth := r.Header.Get("Authorization")
	_, rest, _ := strings.Cut(auth, "Credential=")
	scope := strings.Split(strings.SplitN(rest, ",", 2)[0], "/")
	_, signed, _ := strings.Cut(auth, "SignedHeaders=")
	signed = strings.SplitN(signed, ",", 2)[0]
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil || len(scope) != 5 || len(r.Header["Authorization"]) != 1 {
		return fmt.Errorf("not signed: %q", auth)
	}
	if d := time.Since(at); d > 5*time.Minute || d < -5*time.Minute {
		return fmt.Errorf("signed %v ago", d)
	}
	sum := sha256.Sum256(body)
	payload := hex.EncodeToString(sum[:])
	if h := r.Header.Get("X-Amz-Content-Sha256"); h != "" {
		if len(h) == 64 && h != payload {
			return fmt.Errorf("the body has another hash")
		}
		payload = h
	}
	again := &http.Request{Method: r.Method, Host: r.Host, Header: http.Header{}, URL: &url.URL{Scheme: "https", Host: r.Host, RawQuery: r.URL.RawQuery}}
	again.URL.Path, again.URL.RawPath = r.URL.Path, r.URL.RawPath
	names := strings.Split(signed, ";")
	for k, v := range r.Header {
		if slices.Contains(names, strings.ToLower(k)) && k != "Authorization" {
			again.Header[k] = v
		}
	}
	err = v4.NewSigner().SignHTTP(context.Background(), realAWS, again, payload, scope[3], scope[2], at, func(o *v4.SignerOptions) { o.DisableURIPathEscaping = scope[3] == "s3" })
	if err != nil {
		return err
	}
	if want := again.Header.Get("Authorization"); want != auth {
		return fmt.Errorf("signature of %s: got %s, want %s", r.URL.Path, auth, want)
	}
	return nil
}

func (s *awsServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 64<<20))
	presigned := r.URL.Query().Has("X-Amz-Signature")
	if err == nil && !presigned {
		err = trueSignature(r, body)
	}
	if err != nil {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprintf(w, "<Error><Code>SignatureDoesNotMatch</Code><Message>%s</Message></Error>", strings.NewReplacer("<", "", "&", "").Replace(err.Error()))
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	line, _ := json.Marshal(seen{Proto: r.Proto, Method: r.Method, Host: r.Host, URI: r.RequestURI, Header: r.Header, Body: string(body[:min(len(body), 4096)])})
	s.log.Write(append(line, '\n'))
	switch service := strings.Split(r.Host, ".")[0]; {
	case strings.Contains(r.Host, "s3"):
		s.s3(w, r, body)
	case service == "sts":
		w.Header().Set("Content-Type", "text/xml")
		fmt.Fprint(w, `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult><Arn>arn:aws:iam::123456789012:user/real</Arn><UserId>AIDAREAL</UserId><Account>123456789012</Account></GetCallerIdentityResult><ResponseMetadata><RequestId>1</RequestId></ResponseMetadata></GetCallerIdentityResponse>`)
	case service == "dynamodb":
		w.Header().Set("Content-Type", "application/x-amz-json-1.0")
		fmt.Fprint(w, `{"Item":{"id":{"S":"1"},"word":{"S":"from the table"}}}`)
	case service == "lambda", service == "bedrock-runtime":
		w.Header().Set("Content-Type", "application/json")
		// What a careless function does: it sends back all that it got.
		fmt.Fprintf(w, `{"key":%q,"token":%q}`, realAWS.AccessKeyID, r.Header.Get("X-Amz-Security-Token"))
	default:
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		fmt.Fprint(w, `{}`)
	}
}

func (s *awsServer) s3(w http.ResponseWriter, r *http.Request, body []byte) {
	name := r.URL.Path
	if bucket, _, _ := strings.Cut(r.Host, ".s3"); bucket != r.Host {
		name = "/" + bucket + name
	}
	q := r.URL.Query()
	etag := func(b []byte) string { sum := sha256.Sum256(b); return `"` + hex.EncodeToString(sum[:16]) + `"` }
	switch {
	case q.Has("uploads"):
		fmt.Fprint(w, `<InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>`)
	case r.Method == "PUT":
		if strings.HasPrefix(r.Header.Get("X-Amz-Content-Sha256"), "STREAMING-") {
			body = unchunk(body)
		}
		if q.Has("partNumber") {
			name += "?" + fmt.Sprintf("%05s", q.Get("partNumber"))
		}
		s.objects[name] = body
		w.Header().Set("ETag", etag(body))
	case r.Method == "POST" && q.Has("uploadId"):
		var all []byte
		for n := 1; ; n++ {
			part, ok := s.objects[name+"?"+fmt.Sprintf("%05d", n)]
			if !ok {
				break
			}
			all = append(all, part...)
		}
		s.objects[name] = all
		fmt.Fprintf(w, `<CompleteMultipartUploadResult><ETag>%s</ETag></CompleteMultipartUploadResult>`, etag(all))
	case r.Method == "DELETE":
		delete(s.objects, name)
		w.WriteHeader(http.StatusNoContent)
	case q.Has("list-type"):
		fmt.Fprint(w, `<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><IsTruncated>false</IsTruncated>`)
		for key, b := range s.objects {
			if _, key, _ := strings.Cut(key[1:], "/"); strings.HasPrefix(key, q.Get("prefix")) {
				fmt.Fprintf(w, `<Contents><Key>%s</Key><Size>%d</Size><LastModified>2026-01-01T00:00:00Z</LastModified></Contents>`, key, len(b))
			}
		}
		fmt.Fprint(w, `</ListBucketResult>`)
	default:
		b, ok := s.objects[name]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `<Error><Code>NoSuchKey</Code><Message>none</Message></Error>`)
			return
		}
		w.Header().Set("ETag", etag(b))
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), bytes.NewReader(b))
	}
}

// unchunk reads aws-chunked content.
func unchunk(b []byte) (out []byte) {
	for {
		head, rest, ok := bytes.Cut(b, []byte("\r\n"))
		size, _, _ := strings.Cut(string(head), ";")
		n, err := strconv.ParseInt(size, 16, 32)
		if !ok || err != nil || n == 0 || int(n)+2 > len(rest) {
			return out
		}
		out, b = append(out, rest[:n]...), rest[n+2:]
	}
}

// tokenserver NAME HOST…: a stand-in for the token endpoints of Google and Azure
// that answers what they answer (RFC 6749 section 5), and refuses refresh tokens
// whose name says so.
func cmdTokenServer(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: tokenserver NAME HOST…")
	}
	log, err := os.OpenFile(filepath.Join(ts.Getenv("WORK"), args[0]+".log"), os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	ts.Check(err)
	ts.Defer(func() { log.Close() })
	var mu sync.Mutex
	n := 0
	serveTLS(ts, args[0], args[1:], false, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		r.ParseForm()
		fmt.Fprintf(log, "%s %s%s %s\n", r.Method, r.Host, r.URL.Path, r.PostForm.Encode())
		w.Header().Set("Content-Type", "application/json")
		switch {
		case strings.HasPrefix(r.PostForm.Get("refresh_token"), "refused"):
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `{"error":"invalid_grant","error_description":"refused-refresh is expired"}`)
		case r.Host == "oauth2.googleapis.com" && r.URL.Path == "/token" && r.PostForm.Get("client_secret") == "gcs":
			n++
			fmt.Fprintf(w, `{"access_token":"ya29.real-%d","expires_in":3599,"scope":"https://www.googleapis.com/auth/cloud-platform","token_type":"Bearer"}`, n)
		case strings.HasSuffix(r.URL.Path, "/oauth2/v2.0/token") && r.PostForm.Get("scope") == "https://storage.azure.com/.default":
			fmt.Fprint(w, `{"token_type":"Bearer","expires_in":3599,"ext_expires_in":3599,"access_token":"az-real"}`)
		default:
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `{"error":"invalid_request"}`)
		}
	}))
}
