package capability

import (
	"strings"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

const (
	awsID          = "AKIAPLACEHOLDERPLACE"
	awsPlaceholder = awsID + ":placeholderplaceholderplaceholder0000000"
)

func signedBy(id string) string {
	return "Authorization: AWS4-HMAC-SHA256 Credential=" + id + "/20260101/eu-west-1/s3/aws4_request, SignedHeaders=host;x-amz-date, Signature=" + strings.Repeat("0", 64)
}

// Which key signed decides whose request it is; the signature itself is the
// gateway's to check.
func TestSignedRequests(t *testing.T) {
	s := compile(t, parse(t, `version: 1
grants:
  - {service: aws-s3, operations: [object-read, object-write], resources: [data/in/*], credential: aws}
  - {service: aws-s3, operations: [list], resources: [data], credential: aws}
  - {service: aws-s3, operations: [presigned-read], resources: [public]}
credentials:
  aws: {from: {aws: default}}
`))
	id := Identity{Placeholders: map[string]string{"aws": awsPlaceholder}}
	const object = "GET https://data.s3.eu-west-1.amazonaws.com/in/a"
	for _, c := range []struct {
		want  string
		lines []string
	}{
		{"allow", []string{object, signedBy(awsID)}},
		{"allow", []string{"GET https://s3.eu-west-1.amazonaws.com/data/in/a/b", signedBy(awsID)}},
		{"allow", []string{"GET https://data.s3-accelerate.amazonaws.com/in/a", signedBy(awsID)}},
		{"allow", []string{"GET https://data.s3.eu-west-1.amazonaws.com/?list-type=2", signedBy(awsID)}},
		{CodeResourceNotGranted, []string{"GET https://data.s3.eu-west-1.amazonaws.com/out/a", signedBy(awsID)}},
		{CodeResourceNotGranted, []string{"GET https://data.s3.eu-west-1.amazonaws.com/inside", signedBy(awsID)}},
		{CodeResourceNotGranted, []string{"GET https://other.s3.eu-west-1.amazonaws.com/in/a", signedBy(awsID)}},
		{CodeResourceNotGranted, []string{"GET https://s3.amazonaws.com/other/in/a", signedBy(awsID)}},
		{CodeResourceNotGranted, []string{"GET https://other.s3.dualstack.eu-west-1.amazonaws.com/?list-type=2", signedBy(awsID)}},
		{CodeForeignCredential, []string{object, signedBy("AKIATHIEFTHIEFTHIEF0")}},
		{CodePlaceholderMisplaced, []string{object, signedBy(awsID), signedBy("AKIATHIEFTHIEFTHIEF0")}},
		{CodeForeignCredential, []string{object, signedBy(awsID), "X-Amz-Security-Token: dGhpZWY="}},
		{CodeForeignCredential, []string{object, "Authorization: AWS AKIATHIEFTHIEFTHIEF0:c2ln"}},
		{CodePlaceholderMisplaced, []string{object, "Authorization: AWS " + awsID + ":c2ln"}},
		{CodePlaceholderMisplaced, []string{object, strings.Replace(signedBy(awsID), "AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256", 1)}},
		{CodePlaceholderMisplaced, []string{object, "Authorization: Bearer " + awsPlaceholder}},
		{CodePlaceholderMisplaced, []string{object, signedBy(awsID), "X-Note: " + awsID}},
		{CodePlaceholderMisplaced, []string{object, signedBy(awsID), "X-Note: is placeholderplaceholderplaceholder0000000"}},
		{CodePlaceholderMisplaced, []string{"GET https://public.s3.eu-west-1.amazonaws.com/a?X-Amz-Credential=" + awsID + "%2F20260101&X-Amz-Signature=0"}},
		{"allow", []string{"GET https://public.s3.eu-west-1.amazonaws.com/a?X-Amz-Credential=AKIATHIEFTHIEFTHIEF0%2F20260101&X-Amz-Signature=0"}},
		{"deny", []string{"GET https://data.s3.eu-west-1.amazonaws.com/in/a?X-Amz-Credential=AKIATHIEFTHIEFTHIEF0%2F20260101&X-Amz-Signature=0"}},
		{"deny", []string{object}}, // not signed at all
	} {
		d := s.Decide(newRequest(t, c.lines...), id)
		got := d.Reason.Code
		if d.Verdict == vocabulary.Allow {
			got = "allow"
		}
		if got != c.want && (c.want != "deny" || got == "allow") {
			t.Errorf("%q: %s (%s), want %s", c.lines, got, d.Reason.Message, c.want)
		}
		if got == "allow" && strings.Contains(c.lines[len(c.lines)-1], awsID) && (d.Swap == nil || d.Swap.Credential != "aws" || d.Swap.Slot.Scheme != "Aws4-hmac-sha256") {
			t.Errorf("%q: swap %+v", c.lines, d.Swap)
		}
	}
}
