package broker

import (
	"context"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A token endpoint's answer gives a token that a header can carry and that ends,
// or an error that repeats nothing of it but a short code; the file of a login is
// somebody else's format and may be broken in any way.
func FuzzTokenAnswer(f *testing.F) {
	user := `{"type":"authorized_user","client_id":"c","client_secret":"s","refresh_token":"r"}`
	f.Add(200, []byte(`{"access_token":"ya29.x","token_type":"Bearer","expires_in":3599}`), []byte(user))
	f.Add(400, []byte(`{"error":"invalid_grant","error_description":"SECRET"}`), []byte(user))
	f.Add(200, []byte(`{"access_token":"a\nb","token_type":"bearer","expires_in":1e9}`), []byte(`{"type":"service_account","private_key":"-----BEGIN PRIVATE KEY-----\n-----END"}`))
	f.Add(500, []byte(`<html>SECRET`), []byte(`{"type":"external_account"}`))
	file := filepath.Join(f.TempDir(), "adc.json")
	now := time.Unix(1e9, 0)
	f.Fuzz(func(t *testing.T, status int, answer, adc []byte) {
		if err := os.WriteFile(file, adc, 0o600); err != nil {
			t.Fatal(err)
		}
		endpoint := ""
		post := func(_ context.Context, to string, _ url.Values) (int, []byte, error) {
			endpoint = to
			return status, append([]byte(nil), answer...), nil
		}
		lookup := func(name string) (string, bool) { return file, name == "GOOGLE_APPLICATION_CREDENTIALS" }
		got, err := fetchGoogle(t.Context(), lookup, post, now)
		if endpoint != "" && endpoint != googleToken {
			t.Fatalf("%q was asked", endpoint)
		}
		if err != nil {
			if len(err.reason) > 400+len(file) {
				t.Fatalf("the error repeats the answer: %q", err.reason)
			}
			return
		}
		if status != 200 || len(got.value) == 0 || strings.ContainsFunc(string(got.value), func(r rune) bool { return r <= ' ' || r >= 0x7f }) || !got.until.After(now) {
			t.Fatalf("%d %q gave %q until %v", status, answer, got.value, got.until)
		}
	})
}
