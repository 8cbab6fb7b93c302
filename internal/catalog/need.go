package catalog

import (
	"io"
	"math"
)

// Unlimited is a Need.Stream without an end.
const Unlimited int64 = math.MaxInt64

// Need says what of a request's body must be in Request.Body before Identify
// can judge it, and what may follow unread. The zero Need lets no byte pass.
type Need struct {
	// Whole: buffer everything, at most so many bytes; a longer body is refused.
	Whole int
	// Head: buffer until Head says done (at most HeadMax bytes), decide, then
	// stream what follows.
	Head    HeadFunc
	HeadMax int
	// Stream bounds what follows the buffered part, or the whole of a body that
	// is not read at all.
	Stream int64
	// Gzip: the body may come gzip'd. Then it is decoded first: all of the above
	// is about the decoded bytes, and those go on.
	Gzip bool
	// End: a body that ends before Head is done is as good: all of it is there.
	End bool
	// None: any body is refused.
	None bool
}

// HeadFunc looks at the beginning of a body. It is asked again with more bytes
// until it is done or fails; an error refuses the request.
type HeadFunc func(soFar []byte) (done bool, err error)

// Reads reports whether anything must be buffered.
func (n Need) Reads() bool { return n.Whole > 0 || n.Head != nil }

// Contents is what a body turned out to hold.
type Contents struct {
	// Uses are the features; each must be granted besides the operation.
	Uses []Use
	// Credentials are what looks like one, in a Slot with Body set. In Allowed
	// ones the session's placeholder may stand.
	Credentials []Found
	// Resource is the operation's own resource, where resource-at names a place
	// in the body.
	Resource string
	// Filter, if not nil, is what the whole body must pass through on its way: it
	// asks check about what it finds behind the part that was buffered, and fails
	// with its error.
	Filter func(body io.Reader, check func(Contents) error) io.Reader
}

// bodyReader judges one kind of body. Kinds register in bodyKinds.
type bodyReader interface {
	// need is asked before the body is read.
	need() Need
	// features reads r.Body, which holds what need asked for (with Head, maybe
	// more). op and resource are what Route found; for a ref-aware operation a
	// Use names resource+"@"+ref. An error wraps ErrBadBody.
	features(op *Operation, resource string, r Request) (Contents, error)
}

// bodyKinds makes the reader of a section. What its keys mean beyond the
// generic ones (bodySpec) is the kind's affair.
var bodyKinds = map[string]func(*bodySpec) (bodyReader, error){
	"json":             newJSON,
	"form":             newForm,
	"fields":           newFields, // a form or a JSON object
	"multipart":        newMultipart,
	"ndjson":           newNDJSON,
	"graphql":          newGraphQL,
	"git-receive-pack": newPush,
	"git-upload-pack":  newFetch,
	"crate":            newCrate, // what cargo publishes
}
