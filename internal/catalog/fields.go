package catalog

import "mime"

// newFields is for APIs whose clients send the same fields as a form or as a
// JSON object; the Content-Type says which.
func newFields(b *bodySpec) (bodyReader, error) {
	form, err := newForm(b)
	if err != nil {
		return nil, err
	}
	object, err := newJSON(b)
	return fieldsBody{form, object}, err
}

type fieldsBody struct{ form, object bodyReader }

func (b fieldsBody) need() Need { return b.object.need() }

func (b fieldsBody) features(op *Operation, resource string, r Request) (Contents, error) {
	if types := r.Header.Values("Content-Type"); len(types) == 1 {
		if mt, _, err := mime.ParseMediaType(types[0]); err == nil && mt == "application/x-www-form-urlencoded" {
			return b.form.features(op, resource, r)
		}
	}
	return b.object.features(op, resource, r)
}
