package httpauthz

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/bulkhead-dev/bulkhead/internal/capability"
	"github.com/bulkhead-dev/bulkhead/internal/catalog/sigv4"
	"github.com/bulkhead-dev/bulkhead/internal/secret"
)

// CodeSignature: the request is signed with the placeholder key's id, and the
// signature is not a true one for this request.
const CodeSignature = "signature-refused"

// maxSignedBody bounds a body that is read for no other reason than that its
// hash is part of the signature. The largest of such services' limits (Lambda
// 6 MiB, Bedrock 25 MB).
const maxSignedBody = 25 << 20

// aws4 is a signature that was found true, on its way to be made again.
type aws4 struct {
	auth    sigv4.Authorization
	payload string
}

// verifyAWS4 refuses what the placeholder key did not sign as it is, where the
// decision's slot holds a signature. It may have to read the body, and returns
// what stands for it.
func (q *request) verifyAWS4(d capability.Decision, body io.Reader, length int64) (io.Reader, int64, error) {
	if d.Swap == nil || d.Swap.Slot.Scheme != sigv4.Scheme {
		return body, length, nil
	}
	refuse := func(err error) (io.Reader, int64, error) {
		return nil, 0, &refusal{CodeSignature, "the AWS signature is refused: " + err.Error()}
	}
	keyID, placeholder, ok := sigv4.SplitKey(q.h.Identity.Placeholders[d.Swap.Credential])
	if !ok || !q.secure {
		return refuse(fmt.Errorf("the session has no key for it"))
	}
	scope, err := sigv4.ScopeOf(q.dst.Host.String())
	if err != nil {
		return refuse(err)
	}
	whole := body == nil || q.whole
	if !whole && len(q.r.Header.Values("X-Amz-Content-Sha256")) == 0 {
		if body, length, err = q.wholeBody(body, maxSignedBody); err != nil {
			return nil, 0, err
		}
		whole = true
	}
	r := sigv4.Request{
		Method: q.r.Method, Host: authority(q.dst, q.secure), Path: q.c.Path, Query: q.c.Query, Header: q.r.Header,
		Length: q.r.ContentLength, Body: q.c.Body, Whole: whole,
	}
	a, err := sigv4.Verify(r, keyID, placeholder, scope, time.Now())
	if err != nil {
		return refuse(err)
	}
	payload, err := sigv4.PayloadHash(r)
	if err != nil {
		return refuse(err)
	}
	q.aws4 = &aws4{a, payload}
	return body, length, nil
}

// signAWS4 signs what is about to be forwarded with the real key: the headers
// that the sandbox had signed and every x-amz-* header that is left. AWS's own
// code makes the signature. The secret key itself goes nowhere.
func (q *request) signAWS4(real secret.Value) (*scrubber, error) {
	s, ctx := q.aws4, q.r.Context()
	if s == nil {
		return nil, errors.New("the request's signature was not checked")
	}
	text := real.Reveal()
	key, err := sigv4.ParseKey(string(text))
	if err != nil {
		return nil, fmt.Errorf("the credential can't sign: %w", err)
	}
	host := authority(q.dst, q.secure)
	out := &http.Request{
		Method: q.r.Method, Host: host, Header: http.Header{},
		URL: &url.URL{Scheme: "https", Host: host, Opaque: "//" + host + sigv4.Path(q.c.Path, s.auth.Service), RawQuery: q.c.Query.Encode()},
	}
	q.c.header.Del("Authorization")
	q.c.header.Del("X-Amz-Security-Token")
	for name, values := range q.c.header {
		if strings.HasPrefix(name, "X-Amz-") || slices.Contains(s.auth.Signed, strings.ToLower(name)) {
			out.Header[name] = values
		}
	}
	credentials := aws.Credentials{AccessKeyID: key.ID, SecretAccessKey: key.Secret, SessionToken: key.Token}
	err = v4.NewSigner().SignHTTP(ctx, credentials, out, s.payload, s.auth.Service, s.auth.Region, time.Now(), func(o *v4.SignerOptions) {
		o.DisableURIPathEscaping = true // the path above has its final form
	})
	if err != nil {
		return nil, fmt.Errorf("the request can't be signed: %w", err)
	}
	for _, name := range []string{"Authorization", "X-Amz-Date", "X-Amz-Security-Token"} {
		if v := out.Header[name]; len(v) > 0 {
			q.c.header[name] = v
		}
	}
	q.c.rawQuery = out.URL.RawQuery
	secrets := [][]byte{[]byte(key.Secret), []byte(key.ID)}
	if key.Token != "" {
		secrets = append(secrets, []byte(key.Token))
	}
	return newScrubber(secrets...), nil
}
