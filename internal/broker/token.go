package broker

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// maxAnswer bounds what a token endpoint may say.
const maxAnswer = 64 << 10

// The endpoints that long-lived secrets of Google and Azure are sent to, and no
// others: a configuration file can't name another.
const (
	googleToken = "https://oauth2.googleapis.com/token"
	azureLogin  = "https://login.microsoftonline.com/"
)

// AzureAudiences are what `from: {azure: NAME}` may name, with the audience
// that its tokens are for.
var AzureAudiences = map[string]string{
	"storage":    "https://storage.azure.com/",
	"openai":     "https://cognitiveservices.azure.com/",
	"management": "https://management.azure.com/",
}

// homePath resolves "~/".
func homePath(name string, lookup func(string) (string, bool)) (string, *sourceError) {
	rest, ok := strings.CutPrefix(name, "~/")
	if !ok {
		return name, nil
	}
	home, ok := lookup("HOME")
	if !ok || !filepath.IsAbs(home) {
		return "", missing("set HOME", "file %s: HOME is not set", name)
	}
	return filepath.Join(home, rest), nil
}

// readRegular reads a regular file; a pipe or device in its place must neither
// hang the start nor fill the memory.
func readRegular(path string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = errors.New("too long")
	}
	return b, err
}

// fetchGoogle turns the application default credentials into an access token.
func fetchGoogle(ctx context.Context, lookup func(string) (string, bool), post Poster, now time.Time) (fetched, *sourceError) {
	name := "~/.config/gcloud/application_default_credentials.json"
	if v, ok := lookup("CLOUDSDK_CONFIG"); ok && v != "" {
		name = filepath.Join(v, "application_default_credentials.json")
	}
	if v, ok := lookup("GOOGLE_APPLICATION_CREDENTIALS"); ok && v != "" {
		name = v
	}
	path, serr := homePath(name, lookup)
	if serr != nil {
		return fetched{}, serr
	}
	data, err := readRegular(path, maxAnswer)
	defer clear(data)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fetched{}, missing("gcloud auth application-default login", "file %s does not exist", name)
	case err != nil:
		return fetched{}, broken("make it a regular file that you can read", "file %s can't be read", name)
	}
	var adc struct {
		Type         string `json:"type"`
		ClientID     string `json:"client_id"`
		ClientSecret string `json:"client_secret"`
		RefreshToken string `json:"refresh_token"`
		Email        string `json:"client_email"`
		KeyID        string `json:"private_key_id"`
		PrivateKey   string `json:"private_key"`
		TokenURI     string `json:"token_uri"`
	}
	if json.Unmarshal(data, &adc) != nil {
		return fetched{}, broken("gcloud auth application-default login", "file %s is not JSON", name)
	}
	switch adc.Type {
	case "authorized_user":
		return token(ctx, post, googleToken, url.Values{
			"grant_type": {"refresh_token"}, "client_id": {adc.ClientID}, "client_secret": {adc.ClientSecret}, "refresh_token": {adc.RefreshToken},
		}, now, "gcloud auth application-default login")
	case "service_account":
		if adc.TokenURI != "" && adc.TokenURI != googleToken && adc.TokenURI != "https://accounts.google.com/o/oauth2/token" {
			return fetched{}, broken("use "+googleToken, "file %s names another token endpoint than Google's", name)
		}
		assertion, err := googleAssertion(adc.Email, adc.KeyID, adc.PrivateKey, now)
		if err != nil {
			return fetched{}, broken("download the key of the service account again", "file %s has no usable private key", name)
		}
		return token(ctx, post, googleToken, url.Values{
			"grant_type": {"urn:ietf:params:oauth:grant-type:jwt-bearer"}, "assertion": {assertion},
		}, now, "check the service account and the clock")
	}
	return fetched{}, broken("use from: {command: [gcloud, auth, application-default, print-access-token]}",
		"file %s is of a type that is not read here (authorized_user and service_account are)", name)
}

// googleAssertion signs the JWT of RFC 7523 as Google's service accounts do.
func googleAssertion(email, keyID, privateKey string, now time.Time) (string, error) {
	block, _ := pem.Decode([]byte(privateKey))
	if block == nil || email == "" {
		return "", errors.New("no key")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return "", err
	}
	key, ok := parsed.(*rsa.PrivateKey)
	if !ok {
		return "", errors.New("not RSA")
	}
	part := func(v any) string {
		b, _ := json.Marshal(v)
		return base64.RawURLEncoding.EncodeToString(b)
	}
	text := part(map[string]string{"alg": "RS256", "typ": "JWT", "kid": keyID}) + "." + part(map[string]any{
		"iss": email, "scope": "https://www.googleapis.com/auth/cloud-platform", "aud": googleToken,
		"iat": now.Add(-10 * time.Second).Unix(), "exp": now.Add(time.Hour).Unix(),
	})
	sum := sha256.Sum256([]byte(text))
	sig, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	if err != nil {
		return "", err
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(sig), nil
}

// fetchAzure gets a token for one audience: with the client secret in the
// variables of Azure's SDKs if they are set, else from the Azure CLI. The CLI's
// own cache is not read: its form is nobody's contract.
func fetchAzure(ctx context.Context, audience string, lookup func(string) (string, bool), post Poster, now time.Time) (fetched, *sourceError) {
	resource, ok := AzureAudiences[audience]
	if !ok {
		return fetched{}, broken("one of: management, openai, storage", "azure has no audience %q here", audience)
	}
	env := func(name string) string { v, _ := lookup(name); return v }
	tenant, id, clientSecret := env("AZURE_TENANT_ID"), env("AZURE_CLIENT_ID"), env("AZURE_CLIENT_SECRET")
	if clientSecret != "" {
		if id == "" || tenant == "" || strings.Trim(tenant, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.") != "" || strings.Trim(tenant, ".") == "" {
			return fetched{}, broken("set AZURE_TENANT_ID and AZURE_CLIENT_ID too", "AZURE_CLIENT_SECRET is set without a tenant and a client")
		}
		return token(ctx, post, azureLogin+tenant+"/oauth2/v2.0/token", url.Values{
			"grant_type": {"client_credentials"}, "client_id": {id}, "client_secret": {clientSecret}, "scope": {resource + ".default"},
		}, now, "check AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET")
	}
	cli := inPath("az", lookup)
	if cli == "" {
		return fetched{}, missing("set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET, or install the Azure CLI and az login", "there is no client secret and no Azure CLI")
	}
	raw, serr := runCommand(ctx, []string{cli, "account", "get-access-token", "--resource", resource, "--output", "json"})
	defer clear(raw)
	if serr != nil {
		if !serr.broken {
			serr.remedy = "az login"
		}
		return fetched{}, serr
	}
	var a struct {
		AccessToken string `json:"accessToken"`
		ExpiresOn   int64  `json:"expires_on"`
	}
	if json.Unmarshal(raw, &a) != nil || a.AccessToken == "" {
		return fetched{}, broken("az upgrade", "az printed something else than a token")
	}
	until := now.Add(10 * time.Minute) // older versions don't say in a form without a time zone
	if a.ExpiresOn > 0 {
		until = time.Unix(a.ExpiresOn, 0)
	}
	return fetched{[]byte(a.AccessToken), until}, nil
}

// token asks an OAuth 2 token endpoint (RFC 6749 section 5). What it answers to
// a refusal is not repeated but for its error code.
func token(ctx context.Context, post Poster, endpoint string, form url.Values, now time.Time, remedy string) (fetched, *sourceError) {
	u, _ := url.Parse(endpoint)
	if post == nil {
		return fetched{}, broken("report this", "nothing here can ask %s for a token", u.Host)
	}
	status, body, err := post(ctx, endpoint, form)
	defer clear(body)
	if err != nil {
		return fetched{}, missing("check the network of this host", "%s did not answer", u.Host)
	}
	var a struct {
		AccessToken string `json:"access_token"`
		TokenType   string `json:"token_type"`
		ExpiresIn   int64  `json:"expires_in"`
		Error       string `json:"error"`
	}
	if json.Unmarshal(body, &a) != nil {
		return fetched{}, missing("try again", "%s answered %d and no JSON", u.Host, status)
	}
	if status != 200 || a.AccessToken == "" {
		code := a.Error
		if len(code) > 40 || strings.Trim(code, "abcdefghijklmnopqrstuvwxyz_") != "" {
			code = ""
		}
		return fetched{}, missing(remedy, "%s refused with %d %s", u.Host, status, code)
	}
	if !strings.EqualFold(a.TokenType, "Bearer") || a.ExpiresIn <= 0 || a.ExpiresIn > 7*24*3600 || strings.ContainsFunc(a.AccessToken, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return fetched{}, broken("report this", "%s answered with something else than a bearer token", u.Host)
	}
	return fetched{[]byte(a.AccessToken), now.Add(time.Duration(a.ExpiresIn) * time.Second)}, nil
}
