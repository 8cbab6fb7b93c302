package catalog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// crateBody is what cargo publishes: the length of a JSON object as 32 bits,
// little-endian, the object, the length of the archive, the archive. The object
// is judged like a body of kind json; the archive passes unread. limit: is the
// object's, files-limit: the archive's.
type crateBody struct{ *bodySpec }

func newCrate(b *bodySpec) (bodyReader, error) {
	if len(b.files) > 0 {
		return nil, errors.New("files: belongs to kind: multipart")
	}
	if _, err := newJSON(b); err != nil {
		return nil, err
	}
	return crateBody{b}, nil
}

const lengthField = 4

// head is the object, nil until all of it and the second length are there.
func (b crateBody) head(body []byte) ([]byte, error) {
	if len(body) < lengthField {
		return nil, nil
	}
	n := binary.LittleEndian.Uint32(body)
	if n == 0 || n > uint32(b.limit) {
		return nil, fmt.Errorf("%w: the description of the crate has %d bytes, more than 0 and at most %d are expected", ErrBadBody, n, b.limit)
	}
	end := lengthField + int(n)
	if len(body) < end+lengthField {
		return nil, nil
	}
	if size := binary.LittleEndian.Uint32(body[end:]); int64(size) > int64(b.filesLimit) {
		return nil, fmt.Errorf("%w: the archive of the crate has %d bytes, at most %d are let through", ErrBadBody, size, b.filesLimit)
	}
	return body[lengthField:end], nil
}

func (b crateBody) need() Need {
	return Need{
		Head:    func(soFar []byte) (bool, error) { object, err := b.head(soFar); return object != nil, err },
		HeadMax: b.limit + 2*lengthField, Stream: int64(b.filesLimit),
	}
}

func (b crateBody) features(op *Operation, _ string, r Request) (Contents, error) {
	for _, v := range r.Header.Values("Content-Encoding") {
		if v != "" && !strings.EqualFold(v, "identity") {
			return Contents{}, fmt.Errorf("%w: it is compressed, so it can't be judged", ErrBadBody)
		}
	}
	object, err := b.head(r.Body)
	switch {
	case err != nil:
		return Contents{}, err
	case object == nil:
		return Contents{}, fmt.Errorf("%w: it is not a crate as cargo publishes it", ErrBadBody)
	}
	return b.scan(object, op)
}
