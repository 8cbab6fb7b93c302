package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/image/unpack"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Agents are the Debian packages that common agents need.
var Agents = []string{
	"base-files", "bash", "bzip2", "ca-certificates", "coreutils", "curl", "dash", "diffutils", "file", "findutils", "gawk", "git", "grep", "gzip", "hostname",
	"jq", "less", "libc-bin", "make", "nodejs", "npm", "openssh-client", "patch", "procps", "python3", "python3-venv", "ripgrep", "sed", "tar", "unzip",
	"util-linux", "xz-utils",
}

// BuiltName is what an image is called that Build made and nobody named.
const BuiltName = "bulkhead.local/agent:latest"

// Build makes an image of Debian packages and all that they depend on, of the
// release and from the sources that this host's apt knows and verifies. They are
// unpacked and not configured: no script of theirs runs. The same packages in the
// same versions give the same image. Programs get env; told gets lines for a person.
func (s *Store) Build(ctx context.Context, name string, packages, env []string, told func(string)) (*Image, error) {
	ref := Reference{Registry, name}
	if _, err := CanonicalName(name); err != nil {
		return nil, vocabulary.Exitf(vocabulary.ExitRefused, "%w", err)
	}
	for _, p := range packages {
		if p == "" || strings.Trim(p, "abcdefghijklmnopqrstuvwxyz0123456789+.-:") != "" || p[0] == '-' {
			return nil, vocabulary.Exitf(vocabulary.ExitRefused, "%s is not the name of a Debian package\nnothing was built", unpack.Printable(p))
		}
	}
	for _, program := range []string{"apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, vocabulary.Exitf(vocabulary.ExitNoIsolation, "this host has no %s: images are built from Debian packages on Debian and its kin\nbuild one elsewhere, and use it: docker-archive:FILE, or oci:DIR", program)
		}
	}
	dir, end, err := s.begin()
	if err != nil {
		return nil, err
	}
	defer end()
	told(fmt.Sprintf("getting %d packages and what they depend on", len(packages)))
	debs, err := download(ctx, dir, packages, env)
	if err != nil {
		return nil, err
	}
	told(fmt.Sprintf("unpacking %d packages", len(debs)))
	file := filepath.Join(dir, "layer.tar")
	src, err := assemble(file, debs, func(deb string) (io.ReadCloser, error) { return dataOf(ctx, deb) })
	if err != nil {
		return nil, refuse(ref, "%w", err)
	}
	busy, err := s.turn(ctx, src.id)
	if err != nil {
		return nil, err
	}
	defer busy.Close()
	i, err := s.hold(src.id)
	if err == nil && i == nil {
		i, err = s.make(ctx, ref, src, func(int64, int64) {})
	}
	if err != nil {
		return nil, err
	}
	canonical, err := CanonicalName(name)
	if err == nil {
		err = s.name(canonical, src)
	}
	if err != nil {
		i.Close()
		return nil, err
	}
	return i, nil
}

// download has apt get the packages, as if none were installed, into a folder of
// ours, and returns the files by name.
func download(ctx context.Context, dir string, packages, env []string) ([]string, error) {
	status, cache := filepath.Join(dir, "status"), filepath.Join(dir, "apt")
	if err := os.WriteFile(status, nil, 0o600); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(cache, "archives", "partial"), 0o700); err != nil {
		return nil, err
	}
	args := []string{"-q", "-y", "--download-only", "--no-install-recommends", "-o", "Dir::State::status=" + status, "-o", "Dir::Cache=" + cache, "-o", "Debug::NoLocking=1",
		"-o", "APT::Sandbox::User=", "-o", "APT::Get::AllowUnauthenticated=false", "-o", "Dpkg::Use-Pty=0"}
	if os.Geteuid() == 0 {
		args[slices.Index(args, "APT::Sandbox::User=")] += "root"
	}
	cmd := exec.CommandContext(ctx, "apt-get", append(append(args, "install", "--"), packages...)...)
	said := &unpack.Tail{}
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = said, said, 5*time.Second
	cmd.Env = append(slices.Clone(env), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		lines := strings.Split(strings.TrimSpace(said.String()), "\n")
		return nil, vocabulary.Exitf(vocabulary.ExitRefused, "apt-get could not get the packages (%v): %s\nnothing was built; its lists may be old: sudo apt-get update", err, unpack.Printable(lines[len(lines)-1]))
	}
	debs, err := filepath.Glob(filepath.Join(cache, "archives", "*.deb"))
	slices.Sort(debs)
	if err == nil && len(debs) == 0 {
		err = errors.New("apt-get got no package")
	}
	return debs, err
}

// dataOf is a package's files, as a tar.
func dataOf(ctx context.Context, deb string) (io.ReadCloser, error) {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	cmd.Stderr = &unpack.Tail{}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	return &output{out, cmd}, err
}

// output is what a program writes; Close tells whether it ended well.
type output struct {
	io.Reader
	cmd *exec.Cmd
}

func (o *output) Close() error {
	_, _ = io.Copy(io.Discard, o.Reader)
	return o.cmd.Wait()
}

// merged are the folders that Debian has in /usr only, and packages name as well.
var merged = []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"}

// assemble writes one layer of all packages, in their order, and what makes an image
// of it.
func assemble(file string, debs []string, open func(string) (io.ReadCloser, error)) (*source, error) {
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sum := sha256.New()
	w := tar.NewWriter(io.MultiWriter(f, sum))
	has := map[string]bool{}
	link := func(name, to string) error {
		if has[name] {
			return nil
		}
		has[name] = true
		return w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to, Mode: 0o777, Format: tar.FormatPAX})
	}
	for _, d := range merged {
		if err := w.WriteHeader(&tar.Header{Name: "usr/" + d + "/", Typeflag: tar.TypeDir, Mode: 0o755, Format: tar.FormatPAX}); err != nil {
			return nil, err
		}
		if err := link(d, "usr/"+d); err != nil {
			return nil, err
		}
	}
	for _, deb := range debs {
		in, err := open(deb)
		if err == nil {
			err = errors.Join(copyPackage(w, in, has), in.Close())
		}
		if err != nil {
			return nil, fmt.Errorf("package %s: %w", filepath.Base(deb), err)
		}
	}
	// What scripts of the packages would have linked.
	for _, l := range [][3]string{{"usr/bin/sh", "dash", "usr/bin/dash"}, {"usr/bin/awk", "gawk", "usr/bin/gawk"}, {"usr/bin/which", "which.debianutils", "usr/bin/which.debianutils"}} {
		if has[l[2]] {
			if err := link(l[0], l[1]); err != nil {
				return nil, err
			}
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	id := digest("sha256:" + hex.EncodeToString(sum.Sum(nil)))
	config := configuration{OS: here.OS, Architecture: here.Architecture}
	config.Config.Env = []string{"PATH=/usr/local/bin:/usr/bin:/usr/local/sbin:/usr/sbin"}
	config.RootFS.DiffIDs = []digest{id}
	var text bytes.Buffer
	if err := json.NewEncoder(&text).Encode(config); err != nil {
		return nil, err
	}
	return &source{id: digestOf(text.Bytes()), config: config, close: func() {},
		layers: []layer{{digest: id, size: st.Size(), open: func() (io.ReadCloser, error) { return os.Open(file) }}}}, nil
}

// copyPackage adds a package's files to the layer, by the names that they have
// where /bin, /lib and so on are links into /usr.
func copyPackage(w *tar.Writer, from io.Reader, has map[string]bool) error {
	t := tar.NewReader(from)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := inUsr(h.Name)
		if slices.Contains(merged, name) || name == "." {
			continue
		}
		out := &tar.Header{Name: name, Typeflag: h.Typeflag, Linkname: h.Linkname, Mode: h.Mode, Size: h.Size, ModTime: h.ModTime.Truncate(time.Second), Format: tar.FormatPAX}
		switch h.Typeflag {
		case tar.TypeDir:
			out.Name += "/"
		case tar.TypeLink:
			out.Linkname = inUsr(h.Linkname)
		}
		has[name] = true
		if err := w.WriteHeader(out); err != nil {
			return err
		}
		if _, err := io.Copy(w, t); err != nil {
			return err
		}
	}
}

func inUsr(name string) string {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if first, _, more := strings.Cut(name, "/"); more && slices.Contains(merged, first) {
		return "usr/" + name
	}
	if name == "" {
		return "."
	}
	return name
}
