package policy

import (
	"slices"

	"go.yaml.in/yaml/v3"
)

// cloudKeys are the sources whose value is a choice among what the tools of a
// cloud have on the host.
var cloudKeys = []string{"aws", "google", "azure"}

var azureNames = []string{"management", "openai", "storage"}

// cloudVariables are what those tools read the secret itself from.
var cloudVariables = map[string][]string{
	"aws":    {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"},
	"google": {"GOOGLE_APPLICATION_CREDENTIALS"},
	"azure":  {"AZURE_CLIENT_SECRET"},
}

// cloudSource reads from: {aws: PROFILE}, {google: adc} and {azure: AUDIENCE}.
func (r *reader) cloudSource(t table, c *Credential) {
	one := func(key string, to *string, ok func(string) bool, hint string) {
		n := t.get(key)
		if n == nil {
			return
		}
		v, is := r.str(n, key)
		if is && !ok(v.Value) {
			r.cloudError(n, key, v.Value, hint)
		}
		*to = v.Value
	}
	one("aws", &c.AWS, func(s string) bool { return made(s, alnum+"_", alnum+"._@+-", 128) }, "the name of a profile of ~/.aws/config; default for what AWS's tools use without one")
	one("google", &c.Google, func(s string) bool { return s == "adc" }, "adc, for the application default credentials of gcloud")
	one("azure", &c.Azure, func(s string) bool { return slices.Contains(azureNames, s) }, "what its tokens are for: "+listWords(azureNames))
}

func (r *reader) cloudError(n *yaml.Node, key, value, hint string) {
	r.errorf(n, hint, "%s is not a source of %s", quoted(value), key)
}

func listWords(words []string) string {
	s := ""
	for i, w := range words {
		switch {
		case i > 0 && i == len(words)-1:
			s += " or "
		case i > 0:
			s += ", "
		}
		s += w
	}
	return s
}

// cloud names the cloud source of a credential and its value; "" without one.
func (c Credential) cloud() (key, value string) {
	switch {
	case c.AWS != "":
		return "aws", c.AWS
	case c.Google != "":
		return "google", c.Google
	case c.Azure != "":
		return "azure", c.Azure
	}
	return "", ""
}

// reads reports whether the credential is, or may be, the value of the variable.
func (c Credential) reads(variable string) bool {
	for _, o := range c.Or {
		if o.reads(variable) {
			return true
		}
	}
	key, _ := c.cloud()
	return c.Env != "" && c.Env == variable || key != "" && slices.Contains(cloudVariables[key], variable)
}
