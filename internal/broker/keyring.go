package broker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/zalando/go-keyring"
)

// ErrNoKeyring: nothing on this host keeps secrets for the desktop session.
var ErrNoKeyring = errors.New("no keyring is running: there is no session bus")

// StoreKeyring puts a secret into the keyring entry "service/user", for the
// command line in the controller. An entry that is there keeps all but its
// secret. It is ErrNoKeyring if there is no keyring to ask.
func StoreKeyring(ctx context.Context, entry string, raw []byte, lookup func(string) (string, bool)) error {
	service, user, err := splitEntry(entry)
	if err != nil {
		return err
	}
	return setKeyring(ctx, service, user, string(raw), lookup)
}

// RemoveKeyring deletes the entry and reports whether there was one.
func RemoveKeyring(ctx context.Context, entry string, lookup func(string) (string, bool)) (bool, error) {
	service, user, err := splitEntry(entry)
	if err != nil {
		return false, err
	}
	if !keyringReachable(lookup) {
		return false, ErrNoKeyring
	}
	text, err := withKeyring(ctx, func() (string, error) {
		err := keyring.Delete(service, user)
		if err == nil {
			return "deleted", nil
		}
		return "", err
	})
	return text != "", err
}

// CheckSecret says what a source of this credential would be refused for.
func CheckSecret(raw []byte) error {
	switch {
	case len(raw) == 0:
		return errors.New("it is empty")
	case len(raw) > maxValue:
		return fmt.Errorf("it has more than %d bytes", maxValue)
	case bytes.ContainsFunc(raw, func(r rune) bool { return r < 0x20 || r == 0x7f }):
		return errors.New("it has a line break or another control character in it")
	}
	return nil
}

func splitEntry(entry string) (service, user string, err error) {
	i := strings.LastIndexByte(entry, '/')
	if i <= 0 || i == len(entry)-1 {
		return "", "", errors.New("write a keyring entry as service/user")
	}
	return entry[:i], entry[i+1:], nil
}

func getKeyring(ctx context.Context, service, user string, lookup func(string) (string, bool)) (string, error) {
	if !keyringReachable(lookup) {
		return "", nil
	}
	return withKeyring(ctx, func() (string, error) { return keyring.Get(service, user) })
}

func setKeyring(ctx context.Context, service, user, value string, lookup func(string) (string, bool)) error {
	if !keyringReachable(lookup) {
		return ErrNoKeyring
	}
	_, err := withKeyring(ctx, func() (string, error) {
		if err := replaceItem(service, user, value); !errors.Is(err, keyring.ErrNotFound) {
			return "", err
		}
		return "", keyring.Set(service, user, value)
	})
	return err
}
