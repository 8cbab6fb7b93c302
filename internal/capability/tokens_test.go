package capability

import (
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/secret"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// A token that a service handed out in this session is what it was asked with:
// good for that service, in its own place, alone, at granted operations, under a
// grant of the same credential.
func TestIssuedTokens(t *testing.T) {
	set := compile(t, parse(t, `version: 1
grants:
  - {service: docker-hub, operations: [pull], resources: [acme/app, library/words], credential: hub}
  - {service: docker-hub, operations: [pull], resources: [acme/other], credential: hub2}
  - {service: docker-hub, operations: [push], resources: [acme/app], credential: hub}
  - {service: ghcr, operations: [pull], credential: gh}
credentials:
  hub: {from: {env: A}}
  hub2: {from: {env: B}}
  gh: {from: {env: C}}
`))
	const hub, anonymous = "bulkhead-token-HUB", "bulkhead-token-NOBODY"
	id := Identity{
		Placeholders: map[string]string{"hub": "dckr_pat_xxxxxxxxxxxxxxxxxxxxxxxxxxx", "hub2": "dckr_pat_yyyyyyyyyyyyyyyyyyyyyyyyyyy", "gh": "ghp_zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz"},
		Issued: func(service string, v secret.Value) (string, bool) {
			switch {
			case service == "docker-hub" && v.Equal([]byte(hub)):
				return "hub", true
			case service == "docker-hub" && v.Equal([]byte(anonymous)):
				return "", true
			}
			return "", false
		},
	}
	const manifest = "GET https://registry-1.docker.io/v2/acme/app/manifests/1"
	for _, c := range []struct {
		lines []string
		want  string // code, or the credential that the token stands for
	}{
		{[]string{manifest, "Authorization: Bearer " + hub}, "hub"},
		{[]string{manifest, "Authorization: Bearer " + anonymous}, "nobody"},
		{[]string{manifest, "Authorization: Bearer bulkhead-token-OTHER"}, CodeForeignCredential},
		{[]string{manifest, "Authorization: Basic " + hub}, CodeForeignCredential},
		{[]string{manifest, "X-Api-Key: " + hub}, CodeForeignCredential},
		{[]string{manifest, "Authorization: Bearer " + hub, "X-Api-Key: sk-ant-api03-0000000000000000000000"}, CodeForeignCredential},
		{[]string{manifest, "Authorization: Bearer " + hub, "Authorization: Bearer " + anonymous}, CodeForeignCredential},
		{[]string{manifest + "?token=" + hub}, CodeUnknownOperation},
		{[]string{"GET https://registry-1.docker.io/v2/acme/plans/manifests/1", "Authorization: Bearer " + hub}, CodeResourceNotGranted},
		// What was asked for under one credential passes under no other's grant.
		{[]string{"GET https://registry-1.docker.io/v2/acme/other/manifests/1", "Authorization: Bearer " + hub}, CodeForeignCredential},
		{[]string{"GET https://ghcr.io/v2/acme/app/manifests/1", "Authorization: Bearer " + hub}, CodeForeignCredential},
		{[]string{"PUT https://registry-1.docker.io/v2/acme/app/manifests/1", "Authorization: Bearer " + hub}, "hub"},
		{[]string{"PUT https://registry-1.docker.io/v2/acme/app/manifests/1", "Authorization: Bearer " + anonymous}, CodeCredentialMissing},
	} {
		d := set.Decide(newRequest(t, c.lines...), id)
		got := d.Reason.Code
		if d.Verdict == vocabulary.Allow && d.Swap != nil && d.Swap.Issued {
			if got = d.Swap.Credential; got == "" {
				got = "nobody"
			}
		}
		if c.want == CodeUnknownOperation && got == CodeForeignCredential {
			continue // whichever is said
		}
		if got != c.want {
			t.Errorf("%q: got %s (%s), want %s", c.lines, got, d.Reason.Message, c.want)
		}
	}
	// Only the token endpoint issues tokens.
	for line, want := range map[string]string{
		"GET https://auth.docker.io/token?service=registry.docker.io&scope=repository:acme/app:pull": "docker-hub", manifest: "",
	} {
		if d := set.Decide(newRequest(t, line), id); d.Verdict != vocabulary.Allow || d.Issues != want {
			t.Errorf("%s: issues %q, want %q (%s)", line, d.Issues, want, d.Reason.Message)
		}
	}
	if d := set.Decide(newRequest(t, manifest, "Authorization: Bearer "+hub), Identity{Placeholders: id.Placeholders}); d.Verdict == vocabulary.Allow {
		t.Error("a token is accepted that nobody has issued")
	}
}
