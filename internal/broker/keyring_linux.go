package broker

import (
	"github.com/zalando/go-keyring"
	ss "github.com/zalando/go-keyring/secret_service"
)

// replaceItem gives an item of the Secret Service another secret and leaves the
// rest of it alone: the library's Set makes an item with its own two attributes
// in its place, which the program that made the first one (Codex searches by
// four) would not find again. Without an item it is keyring.ErrNotFound.
func replaceItem(service, user, value string) error {
	if keyringMocked {
		return keyring.ErrNotFound
	}
	svc, err := ss.NewSecretService()
	if err != nil {
		return err
	}
	collection := svc.GetLoginCollection()
	if err := svc.Unlock(collection.Path()); err != nil {
		return err
	}
	items, err := svc.SearchItems(collection, map[string]string{"service": service, "username": user})
	if err != nil {
		return err
	}
	if len(items) == 0 {
		return keyring.ErrNotFound
	}
	session, err := svc.OpenSession()
	if err != nil {
		return err
	}
	defer svc.Close(session)
	if err := svc.Unlock(items[0]); err != nil {
		return err
	}
	// The first one is also what is read.
	return svc.Object("org.freedesktop.secrets", items[0]).Call("org.freedesktop.Secret.Item.SetSecret", 0, ss.NewSecret(session.Path(), value)).Err
}
