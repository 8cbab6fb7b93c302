package policy

import (
	"strings"
	"testing"
)

// TestImages: what names an image, and that a rendered policy says it again.
func TestImages(t *testing.T) {
	for text, want := range map[string]Image{
		"debian:12":                     {Where: "debian:12"},
		"ghcr.io/acme/tools@sha256:00":  {Where: "ghcr.io/acme/tools@sha256:00"},
		"Host.example:5000/a/b:Tag_1":   {Where: "Host.example:5000/a/b:Tag_1"},
		"[::1]:5000/x":                  {Where: "[::1]:5000/x"},
		"oci:~/layout":                  {Form: ImageLayout, Where: "~/layout"},
		"docker-archive:./saved//x.tar": {Form: ImageArchive, Where: "saved/x.tar"},
		"rootfs:/srv/root":              {Form: ImageRootFS, Where: "/srv/root"},
	} {
		i, err := ParseImage(text)
		if err != nil || i != want {
			t.Errorf("%s: %+v %v", text, i, err)
		}
		p, err := Parse("p.yaml", []byte("version: 1\nimage: \""+text+"\"\n"))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		again, err := Parse("again.yaml", p.YAML())
		if err != nil || again.Image.String() != want.String() || p.Image.Pos.Line != 2 {
			t.Errorf("%s: %+v %v\n%s", text, again, err, p.YAML())
		}
	}
	for _, text := range []string{"", "oci:", "rootfs:", "oci:$HOME/x", "rootfs:/a/../b", "-x", "a b", "Debian", "a\nb", "../x", "docker://x", strings.Repeat("x", 600), "héllo"} {
		if i, err := ParseImage(text); err == nil {
			t.Errorf("%q is %+v", text, i)
		}
	}
}
