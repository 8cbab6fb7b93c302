package session

import (
	"os"
	"slices"

	"github.com/bulkhead-dev/bulkhead/internal/broker"
	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/catalog/sigv4"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// The variables of a pair of AWS's, as catalogue entries name them.
const (
	awsKeyID  = "AWS_ACCESS_KEY_ID"
	awsSecret = "AWS_SECRET_ACCESS_KEY"
)

// cloudSource completes a source whose value comes from the tools of a cloud. A
// pair of AWS's only ever signs: nothing else may carry it, and nothing but it
// can sign.
func (s *session) cloudSource(c, at policy.Credential, src *broker.Source, inside []string) ([]string, error) {
	src.AWS, src.Google, src.Azure = at.AWS, at.Google, at.Azure
	services := credentialUse(s.opts.Policy)[c.Name]
	for _, name := range services {
		svc, ok := s.opts.Catalog.Service(name)
		signs := ok && svc.Credential != nil && svc.Credential.Sign == catalog.SignAWS4
		switch {
		case at.AWS != "" && !signs:
			return nil, vocabulary.Exitf(vocabulary.ExitRefused, "%s: credential %s is an AWS key, which can only sign requests of AWS's services\nnothing was started\nname another credential in the grant for %s", c.Pos, c.Name, serviceOrRaw(name))
		case at.AWS == "" && signs:
			return nil, vocabulary.Exitf(vocabulary.ExitRefused, "%s: credential %s can't sign requests of %s\nnothing was started\nwrite {from: {aws: PROFILE}}, as in {from: {aws: default}}", c.Pos, c.Name, name)
		}
	}
	switch {
	case at.AWS != "" && len(services) == 0:
		return nil, vocabulary.Exitf(vocabulary.ExitRefused, "%s: credential %s is an AWS key, which is no login for a proxy", c.Pos, c.Name)
	case at.AWS != "":
		// What the policy passes or sets comes later, and wins.
		if region := broker.AWSRegion(at.AWS, os.LookupEnv); region != "" {
			s.view.env.set("AWS_REGION", region)
			s.view.env.set("AWS_DEFAULT_REGION", region)
		}
		s.view.env.set("AWS_EC2_METADATA_DISABLED", "true")
		return []string{awsKeyID, awsSecret}, nil
	case at.Google != "" || at.Azure != "":
		n, err := s.loginNetwork()
		if err != nil {
			return nil, err
		}
		src.Post = n.Form
	}
	return inside, nil
}

func serviceOrRaw(name string) string {
	if name == "" {
		return "a raw http address"
	}
	return name
}

// placeholderIn is what a variable gets of a placeholder: of a pair its half.
func placeholderIn(variable, placeholder string) string {
	if !slices.Contains([]string{awsKeyID, awsSecret}, variable) {
		return placeholder
	}
	id, secret, ok := sigv4.SplitKey(placeholder)
	switch {
	case !ok:
		return placeholder
	case variable == awsKeyID:
		return id
	}
	return secret
}
