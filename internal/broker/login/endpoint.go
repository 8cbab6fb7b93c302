package login

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/secret"
)

// Network says how the endpoints are reached. The zero Network asks the host's
// resolver and trusts the host's roots.
type Network struct {
	Upstreams []Upstream

	now func() time.Time
}

// Upstream is an entry of the policy's upstreams.
type Upstream struct {
	Host    string // a name, "*.name" or "*"; the narrowest one counts
	Connect string // ip:port
	Proxy   string // URL of a proxy that understands CONNECT, or "direct"
	// ProxyAuth is the proxy's user:password; nil: it asks for none.
	ProxyAuth func() (secret.Value, error)
	// CAPEM: of a name, what alone vouches for it; otherwise further roots.
	CAPEM []byte
}

// narrowest finds what applies to a host: the narrowest entry that says something of
// the kind.
func (n Network) narrowest(host string, says func(Upstream) bool) (found Upstream) {
	for _, u := range n.Upstreams {
		suffix, wild := strings.CutPrefix(u.Host, "*")
		if (u.Host == host || wild && (suffix == "" || strings.HasSuffix(host, suffix))) && says(u) && len(u.Host) >= len(found.Host) {
			found = u
			if !wild {
				return u
			}
		}
	}
	return found
}

// maxAnswer is far above any token answer.
const maxAnswer = 256 << 10

// refusalError: the endpoint does not take the grant.
type refusalError struct{ code string }

func (e *refusalError) Error() string { return "refused: " + e.code }

// client makes a client for one host; nothing of it is kept.
func (n Network) client(host string) (*http.Client, error) {
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	transport := &http.Transport{
		DialContext:           dialer.DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: requestTime,
		DisableKeepAlives:     true,
		ForceAttemptHTTP2:     true,
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	for _, u := range n.Upstreams {
		suffix, wild := strings.CutPrefix(u.Host, "*")
		if wild && len(u.CAPEM) > 0 && strings.HasSuffix(host, suffix) && !roots.AppendCertsFromPEM(u.CAPEM) {
			return nil, fmt.Errorf("upstreams: %s: ca holds no certificate", u.Host)
		}
	}
	if i := slices.IndexFunc(n.Upstreams, func(u Upstream) bool { return u.Host == host && len(u.CAPEM) > 0 }); i >= 0 {
		roots = x509.NewCertPool()
		if !roots.AppendCertsFromPEM(n.Upstreams[i].CAPEM) {
			return nil, fmt.Errorf("upstreams: %s: ca holds no certificate", host)
		}
	}
	transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
	way := n.narrowest(host, func(u Upstream) bool { return u.Connect != "" || u.Proxy != "" })
	switch {
	case way.Connect != "":
		transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, way.Connect)
		}
	case way.Proxy != "" && way.Proxy != "direct":
		proxy, err := url.Parse(way.Proxy)
		if err != nil {
			return nil, fmt.Errorf("upstreams: %s: proxy is no URL", way.Host)
		}
		transport.Proxy = http.ProxyURL(proxy)
		if way.ProxyAuth != nil {
			transport.GetProxyConnectHeader = func(context.Context, *url.URL, string) (http.Header, error) {
				auth, err := way.ProxyAuth()
				if err != nil {
					return nil, err
				}
				defer auth.Wipe()
				return http.Header{"Proxy-Authorization": {"Basic " + base64.StdEncoding.EncodeToString(auth.Reveal())}}, nil
			}
		}
	}
	return &http.Client{
		Transport:     transport,
		Timeout:       requestTime,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// Form posts a form and returns the answer, at most maxAnswer bytes of it. It is
// what other credential sources ask their token endpoints with.
func (n Network) Form(ctx context.Context, to string, form url.Values) (status int, body []byte, err error) {
	p, err := url.Parse(to)
	if err != nil || p.Scheme != "https" {
		return 0, nil, errors.New("the endpoint's address is broken")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, strings.NewReader(form.Encode()))
	if err != nil {
		return 0, nil, errors.New("the endpoint's address is broken")
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	client, err := n.client(p.Hostname())
	if err != nil {
		return 0, nil, err
	}
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, fmt.Errorf("%s did not answer: %w", p.Hostname(), plain(err))
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil || len(body) > maxAnswer {
		clear(body)
		return 0, nil, fmt.Errorf("%s did not answer to the end, or too much", p.Hostname())
	}
	return resp.StatusCode, body, nil
}

// post sends fields to an endpoint and reads the object that it answers with.
func (n Network) post(ctx context.Context, to, encode string, fields [][2]string) (status int, answer map[string]any, err error) {
	var body []byte
	contentType := "application/json"
	if encode == "form" {
		v := url.Values{}
		for _, f := range fields {
			v.Set(f[0], f[1])
		}
		body, contentType = []byte(v.Encode()), "application/x-www-form-urlencoded"
	} else {
		m := map[string]string{}
		for _, f := range fields {
			m[f[0]] = f[1]
		}
		if body, err = json.Marshal(m); err != nil {
			return 0, nil, err
		}
	}
	defer clear(body)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(body))
	if err != nil {
		return 0, nil, errors.New("the endpoint's address is broken")
	}
	req.Header.Set("Content-Type", contentType)
	return n.do(req)
}

func (n Network) do(req *http.Request) (int, map[string]any, error) {
	host := req.URL.Hostname()
	client, err := n.client(host)
	if err != nil {
		return 0, nil, err
	}
	defer client.CloseIdleConnections()
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "bulkhead")
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, fmt.Errorf("%s did not answer: %w", host, plain(err))
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	defer clear(data)
	switch {
	case err != nil:
		return 0, nil, fmt.Errorf("%s did not answer to the end", host)
	case len(data) > maxAnswer:
		return 0, nil, fmt.Errorf("%s answered more than %d KiB", host, maxAnswer>>10)
	case resp.StatusCode >= 300 && resp.StatusCode < 400:
		return 0, nil, fmt.Errorf("%s answered with a redirect, which is not followed", host)
	case resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests:
		return 0, nil, fmt.Errorf("%s answered %d", host, resp.StatusCode)
	}
	answer, err := object(data)
	if err != nil {
		if resp.StatusCode >= 400 {
			return resp.StatusCode, nil, nil
		}
		return 0, nil, fmt.Errorf("%s answered something that is not a JSON object", host)
	}
	return resp.StatusCode, answer, nil
}

// plain is an error without the URL that net/http puts around it.
func plain(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		if u.Timeout() {
			return errors.New("timeout")
		}
		return u.Err
	}
	return err
}

// errorCode is an answer's error: a word, nothing else of it.
func errorCode(answer map[string]any) string {
	code := text(answer, Place{"error"})
	if code == "" {
		if code = text(answer, Place{"error", "code"}); code == "" {
			code = text(answer, Place{"error", "type"})
		}
	}
	if code == "" || len(code) > 60 || strings.Trim(code, "abcdefghijklmnopqrstuvwxyz_") != "" {
		return ""
	}
	return code
}

// grant posts a grant and reads the tokens. It is a refusalError if the
// endpoint does not take the grant for good.
func (n Network) grant(ctx context.Context, s *Spec, to, encode string, fields [][2]string) (tokens, map[string]any, error) {
	var t tokens
	fields = append(fields, [2]string{"client_id", s.Endpoint.Client})
	if s.Endpoint.Secret != "" {
		fields = append(fields, [2]string{"client_secret", s.Endpoint.Secret})
	}
	status, answer, err := n.post(ctx, to, encode, fields)
	if err != nil {
		return t, nil, err
	}
	host := hostOf(to)
	// GitHub answers errors with 200.
	if code := errorCode(answer); status >= 400 || code != "" {
		switch {
		case code == "invalid_grant" || slices.Contains(s.Endpoint.Refused, code) || status < 400:
			return t, answer, &refusalError{code}
		case status == http.StatusUnauthorized:
			if code == "" {
				code = "401"
			}
			return t, answer, &refusalError{code}
		case code != "":
			return t, answer, fmt.Errorf("%s answered %d (%s)", host, status, code)
		}
		return t, answer, fmt.Errorf("%s answered %d", host, status)
	}
	access := text(answer, Place{"access_token"})
	if err := checkToken("access token", access); err != nil {
		return t, nil, fmt.Errorf("the answer of %s: %w", host, err)
	}
	refresh := text(answer, Place{"refresh_token"})
	if refresh != "" {
		if err := checkToken("refresh token", refresh); err != nil {
			return t, nil, fmt.Errorf("the answer of %s: %w", host, err)
		}
	}
	t.access, t.refresh = secret.New([]byte(access)), secret.New([]byte(refresh))
	t.id, t.scope = text(answer, Place{"id_token"}), text(answer, Place{"scope"})
	if len(t.id) > maxToken {
		t.id = ""
	}
	t.expires = expiryOf(access)
	if s, ok := seconds(answer["expires_in"]); ok && s > 0 {
		t.expires = n.now().Add(time.Duration(min(s, 10*365*24*3600)) * time.Second)
	}
	return t, answer, nil
}

func (n Network) refresh(ctx context.Context, s *Spec, have tokens) (tokens, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	fields := [][2]string{{"grant_type", "refresh_token"}, {"refresh_token", string(have.refresh.Reveal())}}
	if have.scope != "" && len(s.At.Scope) > 0 && s.Endpoint.Encode == "json" {
		fields = append(fields, [2]string{"scope", have.scope})
	}
	next, _, err := n.grant(ctx, s, s.Endpoint.URL, s.Endpoint.Encode, fields)
	if err != nil {
		return tokens{}, err
	}
	if next.refresh.Empty() {
		next.refresh = have.refresh.Clone()
	}
	if next.id == "" {
		next.id = have.id
	}
	if next.scope == "" {
		next.scope = have.scope
	}
	return next, nil
}

// whoAmI asks the service whose a new token is.
func (n Network) whoAmI(ctx context.Context, s *Spec, access secret.Value) Account {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Account.URL, nil)
	if err != nil {
		return Account{}
	}
	req.Header.Set("Authorization", "Bearer "+string(access.Reveal()))
	status, answer, err := n.do(req)
	if err != nil || status != http.StatusOK {
		return Account{}
	}
	return accountAt(answer, s.Account.URLAt, s.Account.Name)
}

func hostOf(u string) string {
	p, err := url.Parse(u)
	if err != nil {
		return "the endpoint"
	}
	return p.Hostname()
}
