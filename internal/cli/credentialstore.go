package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/bulkhead-dev/bulkhead/internal/broker"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// ownEntries is the service under which secrets added here stand in a keyring.
const ownEntries = "bulkhead"

func credentialAdd() *cobra.Command {
	var policyPath, keyringEntry, file string
	var printOnly bool
	c := &cobra.Command{
		Use:   "add NAME",
		Short: "Put a secret into the keyring, and its name into your policy",
		Long: `Put a secret into the desktop's keyring, and its name into your policy. The secret is
typed without being shown, or read from standard input if that is no terminal; it is
never printed, and never an argument. A NAME that is there already gets the new secret.

Without a keyring nothing is stored, unless --file names a file: it gets mode 0600 and
is as safe as the disk that it is on.`,
		Example: `  bulkhead credential add corp
  pass show corp/token | bulkhead credential add corp
  bulkhead credential add corp --file ~/.config/bulkhead/corp.token
  bulkhead credential add corp --print        only print what to write into a policy`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			if keyringEntry != "" && file != "" {
				return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "--keyring and --file are two places; choose one")
			}
			at := keptAt{keyring: ownEntries + "/" + name}
			if keyringEntry != "" {
				at.keyring = keyringEntry
			}
			if file != "" {
				path, err := filepath.Abs(file)
				if err != nil {
					return err
				}
				at = keptAt{file: path}
			}
			// Everything that can be wrong is found before the secret is asked for.
			f, err := readPolicyFile(policyPath)
			if err != nil {
				return err
			}
			var text []byte
			if old, there := f.credential(name); there && !printOnly {
				if !at.is(old) {
					return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "credential %s is there already, from %s (%s); nothing was changed\nremove it first (bulkhead credential remove %s), or choose another name", name, old.Source(), old.Pos, name)
				}
			} else if !there || printOnly {
				text, err = f.with(name, at.entry())
				if err == nil {
					err = f.check(text)
				} else if errors.Is(err, errByHand) && !printOnly {
					return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "%s can't be changed line by line: %v; nothing was changed\nuse --print, and write the line there yourself", f.path, err)
				}
				if err != nil && !errors.Is(err, errByHand) {
					return err
				}
			}
			secret, err := readSecret(cmd, name)
			if err != nil {
				return err
			}
			defer clear(secret)
			if err := at.store(cmd.Context(), secret); err != nil {
				return err
			}
			if printOnly {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "credentials:\n  %s: %s\n", name, at.entry())
				return err
			}
			if text != nil {
				if err := f.write(text); err != nil {
					return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "the secret is stored in %s, but %s can't be written: %v\nwrite there yourself, under credentials: %s: %s", at, f.path, err, name, at.entry())
				}
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "credential %s: stored in %s\nto use it, write credential: %s in a grant of %s\n", name, at, name, f.path)
			return nil
		},
	}
	c.Flags().StringVar(&policyPath, "policy", "", "policy `FILE` to name it in (default: your own)")
	c.Flags().StringVar(&keyringEntry, "keyring", "", "keyring entry `SERVICE/USER` instead of bulkhead/NAME")
	c.Flags().StringVar(&file, "file", "", "store in `FILE`, mode 0600, instead of the keyring")
	c.Flags().BoolVar(&printOnly, "print", false, "store the secret, print the policy's lines and change no policy")
	return c
}

func credentialRemove() *cobra.Command {
	var policyPath string
	c := &cobra.Command{
		Use:   "remove NAME",
		Short: "Remove a credential from your policy, and its secret if it was added here",
		Long: `Remove a credential from your policy, and its secret if "credential add" put it into the
keyring or into a file. A secret in other places stays where it is. A credential that a
grant still uses is not removed.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			f, err := readPolicyFile(policyPath)
			if err != nil {
				return err
			}
			old, there := f.credential(name)
			if !there {
				return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "%s has no credential %q (see: bulkhead credential list)", f.path, name)
			}
			for _, g := range f.policy.Grants {
				if g.Credential == name {
					return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "the grant at %s uses credential %s; nothing was changed\nremove the grant first, or give it another credential", g.Pos, name)
				}
			}
			text, err := f.without(name)
			if err == nil {
				err = f.check(text)
			}
			if err != nil {
				return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "%s can't be changed line by line: %v; nothing was changed\nremove the entry at %s yourself", f.path, err, old.Pos)
			}
			what, err := forget(cmd.Context(), old)
			if err != nil {
				return err
			}
			if err := f.write(text); err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "credential %s: removed from %s; %s\n", name, f.path, what)
			return nil
		},
	}
	c.Flags().StringVar(&policyPath, "policy", "", "policy `FILE` that names it (default: your own)")
	return c
}

// keptAt is where an added secret is kept: one of the two.
type keptAt struct{ keyring, file string }

func (k keptAt) String() string {
	if k.file != "" {
		return "the file " + k.file
	}
	return "the keyring entry " + k.keyring
}

// entry is the policy's words for it.
func (k keptAt) entry() string {
	if k.file != "" {
		return "{from: {file: " + yamlScalar(k.file) + "}}"
	}
	return "{from: {keyring: " + yamlScalar(k.keyring) + "}}"
}

func (k keptAt) is(c policy.Credential) bool {
	return len(c.Or) == 0 && c.Keyring == k.keyring && c.File == k.file
}

func yamlScalar(s string) string {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", "''") + "'"
}

const noKeyring = "start a desktop session with a keyring (GNOME Keyring, KWallet, KeePassXC), or store it in a file of mode 0600: --file FILE"

func (k keptAt) store(ctx context.Context, secret []byte) error {
	if k.file != "" {
		if st, err := os.Lstat(k.file); err == nil && !st.Mode().IsRegular() {
			return vocabulary.Exitf(vocabulary.ExitRefused, "%s is not a regular file; nothing was stored", k.file)
		}
		if err := os.MkdirAll(filepath.Dir(k.file), 0o700); err != nil {
			return err
		}
		if err := replaceFile(k.file, append(bytes.Clone(secret), '\n'), 0o600); err != nil {
			return vocabulary.Exitf(vocabulary.ExitRefused, "the secret can't be written: %v; nothing was stored", err)
		}
		return nil
	}
	err := broker.StoreKeyring(ctx, k.keyring, secret, os.LookupEnv)
	if err != nil {
		return vocabulary.Exitf(vocabulary.ExitRefused, "%v; nothing was stored\n%s", err, noKeyring)
	}
	return nil
}

// forget deletes what "credential add" stored, and says what it did.
func forget(ctx context.Context, c policy.Credential) (what string, err error) {
	own := strings.HasPrefix(c.Keyring, ownEntries+"/")
	switch {
	case c.Keyring != "" && own && len(c.Or) == 0:
		there, err := broker.RemoveKeyring(ctx, c.Keyring, os.LookupEnv)
		if err != nil {
			return "", vocabulary.Exitf(vocabulary.ExitRefused, "the keyring entry %s can't be removed: %v; nothing was changed", c.Keyring, err)
		}
		if !there {
			return "the keyring had no entry " + c.Keyring, nil
		}
		return "its secret is gone from the keyring", nil
	case c.File != "" && len(c.Or) == 0:
		return "its secret is still in the file " + c.File + ": delete it there", nil
	}
	return "its secret stays where it is: " + c.Source(), nil
}

// readSecret asks for it on the terminal without showing it, or reads standard
// input to its end.
func readSecret(cmd *cobra.Command, name string) ([]byte, error) {
	var secret []byte
	in := cmd.InOrStdin()
	if f, ok := in.(*os.File); ok && isTerminal(f) {
		tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
		if err != nil {
			return nil, vocabulary.Exitf(vocabulary.ExitRefused, "there is no terminal to ask on; give the secret on standard input")
		}
		defer tty.Close()
		fmt.Fprintf(tty, "Secret of credential %s (it is not shown): ", name)
		secret, err = term.ReadPassword(int(tty.Fd()))
		fmt.Fprintln(tty)
		if err != nil {
			return nil, vocabulary.Exitf(vocabulary.ExitRefused, "nothing was typed; nothing was stored")
		}
	} else {
		var err error
		secret, err = io.ReadAll(io.LimitReader(in, 64<<10))
		if err != nil && !errors.Is(err, fs.ErrClosed) {
			return nil, vocabulary.Exitf(vocabulary.ExitRefused, "standard input can't be read; nothing was stored")
		}
		secret = bytes.TrimSuffix(bytes.TrimSuffix(secret, []byte("\n")), []byte("\r"))
	}
	if err := broker.CheckSecret(secret); err != nil {
		clear(secret)
		return nil, vocabulary.Exitf(vocabulary.ExitRefused, "the secret can't be used: %v; nothing was stored", err)
	}
	return secret, nil
}
