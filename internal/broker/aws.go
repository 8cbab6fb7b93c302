package broker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/catalog/sigv4"
)

// AWSDefault is the profile name that means what AWS's tools use without one:
// the variables AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY if they are set,
// else AWS_PROFILE, else the profile "default".
const AWSDefault = "default"

// maxConfig bounds a configuration file of AWS's tools.
const maxConfig = 1 << 20

// awsSettings are what is used of a profile, from both files.
type awsSettings struct{ values map[string]string }

func (s awsSettings) has(keys ...string) (string, bool) {
	for _, k := range keys {
		if s.values[k] != "" {
			return k, true
		}
	}
	return "", false
}

// fetchAWS finds the key of a profile. In this order: variables (AWSDefault
// only), roles and single sign-on by way of the AWS CLI, keys in the files, a
// credential_process.
func fetchAWS(ctx context.Context, profile string, lookup func(string) (string, bool)) (fetched, *sourceError) {
	env := func(name string) string { v, _ := lookup(name); return v }
	if profile == AWSDefault {
		if k := (sigv4.Key{ID: env("AWS_ACCESS_KEY_ID"), Secret: env("AWS_SECRET_ACCESS_KEY"), Token: env("AWS_SESSION_TOKEN")}); k.ID != "" || k.Secret != "" {
			return awsKey(k, time.Time{}, "the variables AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
		}
		if p := env("AWS_PROFILE"); p != "" {
			profile = p
		}
	}
	s, serr := readAWS(profile, lookup)
	if serr != nil {
		return fetched{}, serr
	}
	if len(s.values) == 0 {
		return fetched{}, missing("aws configure --profile "+profile+", or name another profile", "AWS has no profile %q on this host", profile)
	}
	if key, ok := s.has("role_arn", "sso_session", "sso_start_url", "web_identity_token_file", "login_session"); ok {
		return awsExport(ctx, profile, key, lookup)
	}
	if _, ok := s.has("aws_access_key_id", "aws_secret_access_key"); ok {
		k := sigv4.Key{ID: s.values["aws_access_key_id"], Secret: s.values["aws_secret_access_key"], Token: s.values["aws_session_token"]}
		return awsKey(k, time.Time{}, "profile "+profile)
	}
	if line := s.values["credential_process"]; line != "" {
		argv, ok := splitCommand(line)
		if !ok {
			return fetched{}, broken("close its quotes", "credential_process of profile %s is not a command", profile)
		}
		return awsProcess(ctx, argv)
	}
	return fetched{}, missing("aws configure --profile "+profile+", or name another profile", "profile %s has no key, credential_process, role or single sign-on", profile)
}

// awsExport lets the AWS CLI, the user's own, do what needs a conversation with
// AWS.
func awsExport(ctx context.Context, profile, why string, lookup func(string) (string, bool)) (fetched, *sourceError) {
	cli := inPath("aws", lookup)
	if cli == "" {
		return fetched{}, missing("install the AWS CLI (version 2), or name a profile with a key", "profile %s gets its key by %s, for which the AWS CLI is needed", profile, why)
	}
	f, err := awsProcess(ctx, []string{cli, "configure", "export-credentials", "--profile", profile, "--format", "process"})
	if err != nil && !err.broken {
		err.remedy = "aws sso login --profile " + profile + ", or see what this says: aws sts get-caller-identity --profile " + profile
	}
	return f, err
}

// inPath finds a program in the absolute folders of PATH.
func inPath(name string, lookup func(string) (string, bool)) string {
	path, _ := lookup("PATH")
	for _, dir := range filepath.SplitList(path) {
		if !filepath.IsAbs(dir) {
			continue
		}
		p := filepath.Join(dir, name)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p
		}
	}
	return ""
}

// awsProcess reads the answer of AWS's credential process interface.
func awsProcess(ctx context.Context, argv []string) (fetched, *sourceError) {
	raw, err := runCommand(ctx, argv)
	defer clear(raw)
	if err != nil {
		return fetched{}, err
	}
	var a struct {
		Version                                    int
		AccessKeyId, SecretAccessKey, SessionToken string
		Expiration                                 string
	}
	where := "command " + argv[0]
	if json.Unmarshal(raw, &a) != nil || a.Version != 1 {
		return fetched{}, broken("it has to print version 1 of AWS's credential process format", "%s printed something else than a credential", where)
	}
	var until time.Time
	if a.Expiration != "" {
		var perr error
		if until, perr = time.Parse(time.RFC3339, a.Expiration); perr != nil {
			return fetched{}, broken("it has to be a time of RFC 3339", "%s printed an Expiration that is none", where)
		}
	}
	return awsKey(sigv4.Key{ID: a.AccessKeyId, Secret: a.SecretAccessKey, Token: a.SessionToken}, until, where)
}

func awsKey(k sigv4.Key, until time.Time, where string) (fetched, *sourceError) {
	if err := k.Check(); err != nil {
		return fetched{}, broken("check both halves of the key", "%s: %v", where, err)
	}
	return fetched{[]byte(k.Text()), until}, nil
}

// readAWS joins a profile of the credentials and the config file; what the
// credentials file says wins.
func readAWS(profile string, lookup func(string) (string, bool)) (awsSettings, *sourceError) {
	s := awsSettings{map[string]string{}}
	for _, f := range []struct{ env, path, section string }{
		{"AWS_CONFIG_FILE", "~/.aws/config", "profile " + profile},
		{"AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials", profile},
	} {
		path := f.path
		if v, ok := lookup(f.env); ok && v != "" {
			path = v
		}
		section := f.section
		if profile == "default" {
			section = profile
		}
		if err := readINI(path, section, lookup, s.values); err != nil {
			return s, err
		}
	}
	return s, nil
}

// readINI adds the settings of one section. A file that is not there has none.
func readINI(name, section string, lookup func(string) (string, bool), to map[string]string) *sourceError {
	path, serr := homePath(name, lookup)
	if serr != nil {
		return serr
	}
	data, err := readRegular(path, maxConfig)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return broken("make it a regular file that you can read", "file %s can't be read", name)
	}
	defer clear(data)
	in := false
	for sc := bufio.NewScanner(bytes.NewReader(data)); sc.Scan(); {
		line := sc.Text()
		trimmed := strings.TrimSpace(line)
		switch {
		case trimmed == "" || trimmed[0] == '#' || trimmed[0] == ';':
		case trimmed[0] == '[':
			head, _, _ := strings.Cut(trimmed[1:], "]")
			in = strings.Join(strings.Fields(strings.Trim(head, `"`)), " ") == section || strings.ReplaceAll(strings.Join(strings.Fields(head), " "), `"`, "") == section
		case in && line[0] != ' ' && line[0] != '\t': // an indented line belongs to a nested setting
			key, value, ok := strings.Cut(trimmed, "=")
			if ok {
				to[strings.ToLower(strings.TrimSpace(key))] = strings.TrimSpace(value)
			}
		}
	}
	return nil
}

// AWSRegion is the region that AWS's tools would use for the profile, or "".
func AWSRegion(profile string, lookup func(string) (string, bool)) string {
	for _, name := range []string{"AWS_REGION", "AWS_DEFAULT_REGION"} {
		if v, ok := lookup(name); ok && v != "" {
			return v
		}
	}
	if p, ok := lookup("AWS_PROFILE"); ok && p != "" && profile == AWSDefault {
		profile = p
	}
	s, _ := readAWS(profile, lookup)
	return s.values["region"]
}

// splitCommand splits a line into words; double quotes hold spaces together. No
// shell is involved.
func splitCommand(line string) (argv []string, ok bool) {
	var word strings.Builder
	open, quoted := false, false
	for _, r := range line {
		switch {
		case r == '"':
			quoted, open = !quoted, true
		case (r == ' ' || r == '\t') && !quoted:
			if open {
				argv = append(argv, word.String())
				word.Reset()
			}
			open = false
		default:
			word.WriteRune(r)
			open = true
		}
	}
	if open {
		argv = append(argv, word.String())
	}
	return argv, !quoted && len(argv) > 0 && argv[0] != ""
}
