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
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	awsID     = "AKIAREALREALREALREAL"
	awsSecret = "real/secret+realsecretrealsecretrealsecr"
)

func home(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		p := filepath.Join(dir, name)
		mode := os.FileMode(0o600)
		if strings.HasPrefix(text, "#!") {
			mode = 0o700
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o700), os.WriteFile(p, []byte(text), mode)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// open returns the credential's value, or the error's text.
func openOne(t *testing.T, s Source, vars map[string]string) string {
	t.Helper()
	s.Name, s.Placeholder = "c", "placeholder"
	b, _, err := Open(context.Background(), []Source{s}, env(vars))
	if err != nil {
		if strings.Contains(err.Error(), awsSecret) {
			t.Errorf("a secret in %q", err)
		}
		return "error: " + err.Error()
	}
	defer b.Close()
	v, err := b.Credential("c", "", "")
	if err != nil {
		return "error: " + err.Error()
	}
	return string(v.Reveal())
}

func TestAWSProfiles(t *testing.T) {
	process := `#!/bin/sh
printf '{"Version":1,"AccessKeyId":"` + awsID + `","SecretAccessKey":"` + awsSecret + `","SessionToken":"tok%s","Expiration":"2999-01-01T00:00:00Z"}' "$1"`
	dir := home(t, map[string]string{
		".aws/credentials": "[default]\naws_access_key_id = " + awsID + "\naws_secret_access_key=" + awsSecret + "\n# [x]\n[half]\naws_access_key_id=" + awsID + "\n[ temp ]\naws_access_key_id=" + awsID + "\naws_secret_access_key=" + awsSecret + "\naws_session_token=dG9rZW4=\n",
		".aws/config": "[default]\nregion = eu-west-1\ns3 =\n  aws_access_key_id = AKIANESTEDNESTEDNEST\n[profile \"process\"]\ncredential_process = \"PROC\" arg\n[profile role]\nrole_arn=arn:aws:iam::1:role/x\nsource_profile=default\n" +
			"[profile sso]\nsso_session = corp\n[profile web]\nweb_identity_token_file=/t\n[profile empty]\nregion=us-east-1\n[profile bad]\ncredential_process = /bin/echo nothing\n[profile ended]\ncredential_process = ENDED\n",
		"bin/proc":  process,
		"bin/ended": strings.Replace(process, "2999", "2001", 1),
		"cli/aws":   "#!/bin/sh\n[ \"$1 $2 $3 $5\" = 'configure export-credentials --profile --format' ] || exit 9\nexec " + "PROC" + " $4",
	})
	for _, f := range []string{".aws/config", "cli/aws"} {
		b, _ := os.ReadFile(filepath.Join(dir, f))
		text := strings.NewReplacer("PROC", filepath.Join(dir, "bin/proc"), "ENDED", filepath.Join(dir, "bin/ended")).Replace(string(b))
		os.WriteFile(filepath.Join(dir, f), []byte(text), 0o700)
	}
	plain := awsID + ":" + awsSecret
	for _, c := range []struct {
		profile string
		vars    map[string]string
		want    string
	}{
		{"default", nil, plain},
		{"temp", nil, plain + ":dG9rZW4="},
		{"process", nil, plain + ":tokarg"},
		{"default", map[string]string{"AWS_PROFILE": "temp"}, plain + ":dG9rZW4="},
		{"default", map[string]string{"AWS_ACCESS_KEY_ID": "AKIAVARIABLEVARIABLE", "AWS_SECRET_ACCESS_KEY": awsSecret, "AWS_SESSION_TOKEN": "t"}, "AKIAVARIABLEVARIABLE:" + awsSecret + ":t"},
		{"temp", map[string]string{"AWS_ACCESS_KEY_ID": "AKIAVARIABLEVARIABLE", "AWS_SECRET_ACCESS_KEY": awsSecret}, plain + ":dG9rZW4="},
		{"default", map[string]string{"AWS_ACCESS_KEY_ID": "AKIAVARIABLEVARIABLE"}, "error: .*secret access key is none"},
		{"half", nil, "error: .*secret access key is none"},
		{"role", nil, "error: .*role_arn, for which the AWS CLI is needed"},
		{"sso", nil, "error: .*sso_session"},
		{"web", nil, "error: .*web_identity_token_file"},
		{"role", map[string]string{"PATH": "relative:" + filepath.Join(dir, "cli")}, plain + ":tokrole"},
		{"empty", nil, "error: .*no key"},
		{"nobody", nil, `error: .*no profile "nobody"`},
		{"bad", nil, "error: .*something else than a credential"},
		{"ended", nil, "error: .*ended at 2001"},
	} {
		vars := map[string]string{"HOME": dir}
		for k, v := range c.vars {
			vars[k] = v
		}
		got := openOne(t, Source{AWS: c.profile}, vars)
		if want, isErr := strings.CutPrefix(c.want, "error: .*"); got != c.want && !(isErr && strings.HasPrefix(got, "error: ") && strings.Contains(got, want)) {
			t.Errorf("%s %v: got %q, want %q", c.profile, c.vars, got, c.want)
		}
	}
	if r := AWSRegion("default", env(map[string]string{"HOME": dir})); r != "eu-west-1" {
		t.Errorf("region %q", r)
	}
	if r := AWSRegion("default", env(map[string]string{"HOME": dir, "AWS_REGION": "us-west-2"})); r != "us-west-2" {
		t.Errorf("region %q", r)
	}
}

// A value that ends is fetched again before it does; a failed fetch leaves the
// old one until its end; nothing is given out after Revoke.
func TestRenewal(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	n, fail := 0, false
	l := &live{now: func() time.Time { return now }, fetch: func(context.Context) (fetched, *sourceError) {
		if fail {
			return fetched{}, missing("wait", "no network")
		}
		n++
		return fetched{[]byte(fmt.Sprint("value-", n)), now.Add(time.Hour)}, nil
	}}
	get := func() string {
		v, err := l.get()
		if err != nil {
			return err.reason
		}
		return string(v.Reveal())
	}
	l.first(context.Background())
	now = now.Add(50 * time.Minute)
	if got := get(); got != "value-1" {
		t.Error(got)
	}
	now = now.Add(6 * time.Minute)
	if got := get(); got != "value-2" {
		t.Error(got)
	}
	fail = true
	now = now.Add(58 * time.Minute)
	if got := get(); got != "value-2" {
		t.Error(got)
	}
	now = now.Add(3 * time.Minute)
	if got := get(); got != "no network" {
		t.Error(got)
	}
	fail = false
	b := &Broker{open: true, renewed: map[string]*live{"c": l}, placeholders: map[string]string{}}
	b.values = nil
	b.Revoke()
	if _, err := b.Credential("c", "", ""); !errors.Is(err, ErrRevoked) {
		t.Error(err)
	}
}

func TestGoogle(t *testing.T) {
	key, _ := rsa.GenerateKey(rand.Reader, 2048)
	der, _ := x509.MarshalPKCS8PrivateKey(key)
	pemKey := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	enc := func(v any) string { b, _ := json.Marshal(v); return string(b) }
	dir := home(t, map[string]string{
		".config/gcloud/application_default_credentials.json": enc(map[string]string{"type": "authorized_user", "client_id": "id", "client_secret": "cs", "refresh_token": "1//refresh"}),
		"sa.json":       enc(map[string]string{"type": "service_account", "client_email": "a@b", "private_key_id": "k1", "private_key": pemKey, "token_uri": googleToken}),
		"moved.json":    enc(map[string]string{"type": "service_account", "client_email": "a@b", "private_key": pemKey, "token_uri": "https://evil.example/token"}),
		"external.json": enc(map[string]string{"type": "external_account"}),
	})
	var asked []url.Values
	answer, status := `{"access_token":"ya29.short","token_type":"Bearer","expires_in":3599}`, 200
	post := func(_ context.Context, endpoint string, form url.Values) (int, []byte, error) {
		if endpoint != googleToken {
			t.Errorf("sent to %s", endpoint)
		}
		asked = append(asked, form)
		return status, []byte(answer), nil
	}
	vars := map[string]string{"HOME": dir}
	if got := openOne(t, Source{Google: "adc", Post: post}, vars); got != "ya29.short" || asked[0].Get("refresh_token") != "1//refresh" || asked[0].Get("grant_type") != "refresh_token" {
		t.Errorf("%q %v", got, asked)
	}
	vars["GOOGLE_APPLICATION_CREDENTIALS"] = filepath.Join(dir, "sa.json")
	if got := openOne(t, Source{Google: "adc", Post: post}, vars); got != "ya29.short" {
		t.Error(got)
	}
	parts := strings.Split(asked[1].Get("assertion"), ".")
	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	sig, _ := base64.RawURLEncoding.DecodeString(parts[2])
	claims, _ := base64.RawURLEncoding.DecodeString(parts[1])
	if err := rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA256, sum[:], sig); err != nil || !strings.Contains(string(claims), `"aud":"`+googleToken) {
		t.Errorf("%v %s", err, claims)
	}
	for file, want := range map[string]string{"moved.json": "another token endpoint", "external.json": "gcloud, auth", "none.json": "does not exist"} {
		n := len(asked)
		vars["GOOGLE_APPLICATION_CREDENTIALS"] = filepath.Join(dir, file)
		if got := openOne(t, Source{Google: "adc", Post: post}, vars); !strings.Contains(got, want) || len(asked) != n {
			t.Errorf("%s: %q", file, got)
		}
	}
	delete(vars, "GOOGLE_APPLICATION_CREDENTIALS")
	for _, c := range []struct {
		status       int
		answer, want string
	}{
		{400, `{"error":"invalid_grant","error_description":"1//refresh"}`, "refused with 400 invalid_grant"},
		{500, `oops`, "no JSON"},
		{200, `{"access_token":"a b","token_type":"Bearer","expires_in":1}`, "something else"},
		{200, `{"access_token":"x","token_type":"mac","expires_in":1}`, "something else"},
		{200, `{"access_token":"x","token_type":"Bearer"}`, "something else"},
	} {
		status, answer = c.status, c.answer
		if got := openOne(t, Source{Google: "adc", Post: post}, vars); !strings.Contains(got, c.want) || strings.Contains(got, "1//") {
			t.Errorf("%+v: %q", c, got)
		}
	}
	if got := openOne(t, Source{Google: "adc"}, vars); !strings.Contains(got, "nothing here can ask") {
		t.Error(got)
	}
}

func TestAzure(t *testing.T) {
	dir := home(t, map[string]string{"bin/az": "#!/bin/sh\n[ \"$4\" = https://storage.azure.com/ ] || exit 1\necho '{\"accessToken\":\"cli-token\",\"expires_on\":32503680000}'"})
	var endpoint string
	var form url.Values
	post := func(_ context.Context, e string, f url.Values) (int, []byte, error) {
		endpoint, form = e, f
		return 200, []byte(`{"access_token":"az-token","token_type":"Bearer","expires_in":3599}`), nil
	}
	vars := map[string]string{"AZURE_TENANT_ID": "00000000-1111-2222-3333-444444444444", "AZURE_CLIENT_ID": "app", "AZURE_CLIENT_SECRET": "s3cr3t"}
	if got := openOne(t, Source{Azure: "openai", Post: post}, vars); got != "az-token" || endpoint != azureLogin+vars["AZURE_TENANT_ID"]+"/oauth2/v2.0/token" ||
		form.Get("scope") != "https://cognitiveservices.azure.com/.default" || form.Get("client_secret") != "s3cr3t" {
		t.Errorf("%q %q %v", got, endpoint, form)
	}
	vars["AZURE_TENANT_ID"] = "x/../../evil"
	if got := openOne(t, Source{Azure: "openai", Post: post}, vars); !strings.Contains(got, "without a tenant") {
		t.Error(got)
	}
	if got := openOne(t, Source{Azure: "storage"}, map[string]string{"PATH": filepath.Join(dir, "bin")}); got != "cli-token" {
		t.Error(got)
	}
	if got := openOne(t, Source{Azure: "management"}, map[string]string{"PATH": filepath.Join(dir, "bin")}); !strings.Contains(got, "az login") {
		t.Error(got)
	}
	if got := openOne(t, Source{Azure: "storage"}, map[string]string{"PATH": "bin"}); !strings.Contains(got, "no Azure CLI") {
		t.Error(got)
	}
}

func FuzzINI(f *testing.F) {
	f.Add("[default]\naws_access_key_id = x\n", "default")
	f.Add("[profile \"a b\"]\n s = 1\nk=v=w\n[", "profile a b")
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text, section string) {
		path := filepath.Join(dir, "config")
		os.WriteFile(path, []byte(text), 0o600)
		got := map[string]string{}
		readINI(path, section, env(nil), got)
		for k, v := range got {
			if strings.ContainsAny(k+v, "\n\r") && !strings.Contains(text, "\r") {
				t.Errorf("%q = %q", k, v)
			}
		}
		splitCommand(text)
	})
}
