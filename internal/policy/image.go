package policy

import (
	"errors"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Image says where the root of a container comes from.
type Image struct {
	Form  ImageForm
	Where string // a registry's name, or a path as in Workspace; "" is no image
	Pos   vocabulary.Position
}

// ImageForm is how an image is named: the word before the colon.
type ImageForm string

// The forms.
const (
	ImageRegistry ImageForm = ""               // [HOST/]NAME[:TAG][@DIGEST]
	ImageLayout   ImageForm = "oci"            // oci:DIR, an OCI layout
	ImageArchive  ImageForm = "docker-archive" // docker-archive:FILE, of docker save
	ImageRootFS   ImageForm = "rootfs"         // rootfs:DIR, a folder as it is
)

// String is the image as policies and --image have it.
func (i Image) String() string {
	if i.Form == ImageRegistry {
		return i.Where
	}
	return string(i.Form) + ":" + i.Where
}

const imageHint = "write [HOST/]NAME[:TAG], or oci:DIR, docker-archive:FILE, rootfs:DIR"

// ParseImage reads the value of --image.
func ParseImage(text string) (Image, error) {
	i, p := parseImage(text)
	if p != nil {
		return i, errors.New(p.msg + "\n" + p.hint)
	}
	return i, nil
}

func parseImage(text string) (Image, *problem) {
	form, where, _ := strings.Cut(text, ":")
	switch f := ImageForm(form); f {
	case ImageLayout, ImageArchive, ImageRootFS:
		if where == "" {
			return Image{}, &problem{"image " + quoted(text) + " names no path", imageHint}
		}
		clean, p := cleanPath(where)
		return Image{Form: f, Where: clean}, p
	}
	host, name, with := strings.Cut(text, "/")
	if !with || !strings.ContainsAny(host, ".:") && host != "localhost" {
		host, name = "", text
	}
	repository, _, _ := strings.Cut(name, "@")
	repository, _, _ = strings.Cut(repository, ":")
	switch {
	case !made(name, alnum, alnum+"._/:@+-", 512) || host != "" && !made(host, alnum+"[", alnum+".:-[]", 255):
		return Image{}, &problem{quoted(text) + " is not the name of an image", imageHint}
	case repository != strings.ToLower(repository):
		return Image{}, &problem{quoted(text) + " has capital letters in its name", "names of images are in lower case: " + strings.ToLower(repository)}
	}
	return Image{Where: text}, nil
}
