package container

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Where the cradle puts things in its own root.
const (
	treeDir    = "/tree" // treeDir/0 is the sandbox's root, the others are mounted in it
	rootTree   = treeDir + "/0"
	bundleDir  = "/bundle"
	stateDir   = "/state"
	hostDir    = "/host" // the host's root, until everything is arranged
	scratchDir = "/scratch"
	runscPath  = "/runsc"
	// traceConfig says what runsc tells of what happens inside.
	traceConfig = bundleDir + "/trace.json"
)

// step is one thing that the cradle does, in order. At is a path in its root.
type step struct {
	Do     action
	At     string
	Source string // bind: on the host; link: what it points to
	Data   []byte
	Perm   uint32
	RO     bool
	// Layer: Source is a copy-on-write view that the warden has mounted over a
	// folder of this device.
	Layer  bool
	Device uint64
	// Dev and Ino are what a source was when it was judged; no inode: any.
	Dev, Ino uint64
	// Own: what At lies in is the cradle's own, so a mount point is made.
	// Otherwise it is the host's, and has to be there.
	Own bool
	// Image: At lies in an image. Whatever is in its way there makes way, in the
	// cradle's layer.
	Image bool
}

type action uint8

const (
	doDir  action = iota // a directory, or that there is one
	doBind               // Source at At
	doMaskFile
	doMaskDir
	doFrame // an empty directory that later steps fill
	doData  // a read-only file
	doLink
	doRoot // an image at At, and a layer of the cradle's for mount points
)

// mount is one of gVisor's own mounts.
type mount struct {
	Target string
	Source string // in the cradle's root; empty: a memory file system
	RO     bool
	Size   int64
	Perm   uint32
}

// arrangement is a mount plan turned into what the parts of a sandbox do.
type arrangement struct {
	steps   []step
	mounts  []mount
	files   []guest.File
	links   []guest.Link
	trees   int
	layers  []vocabulary.Mount // overlays, for the warden
	guarded []guarded
	image   bool  // the root is one
	size    int64 // of its layer of writes, in gVisor's memory
}

// ground is what stands at a part of the sandbox's tree.
type ground uint8

const (
	own      ground = iota // the cradle's own files, read-only inside
	readOnly               // the host's, read-only
	writable               // the host's, writable
	memory                 // gVisor's memory
	imaged                 // an image, with layers above
)

type region struct {
	target string
	ground ground
	at     string // where target stands in the cradle's root; not for memory
}

type arranger struct {
	arrangement
	regions []region
	layerAt map[string]string // where layers stand, and their targets
	judged  []sandbox.Identity
}

// arrange turns a plan into an arrangement. self is our binary on the host, and
// tmpfsSize is for a Tmpfs without a size.
func arrange(spec sandbox.Spec, self string, tmpfsSize int64) (*arrangement, error) {
	a := &arranger{layerAt: map[string]string{}, judged: spec.Judged}
	mounts := spec.Mounts
	a.trees = 1
	if len(mounts) > 0 && mounts[0].Kind == vocabulary.Root {
		if err := a.root(mounts[0], tmpfsSize); err != nil {
			return nil, err
		}
		if most := spec.Limits.Disk; most > 0 {
			a.size = min(a.size, most)
		}
		mounts = mounts[1:]
	} else if len(mounts) > 0 && mounts[0].Target == "/" {
		if mounts[0].Kind != vocabulary.BindRO {
			return nil, fmt.Errorf("mount / (%s): the root can only be shown read-only", mounts[0].Why)
		}
		a.step(step{Do: doBind, At: rootTree, Source: mounts[0].Source, RO: true, Own: true})
		a.regions = append(a.regions, region{"/", readOnly, rootTree})
		mounts = mounts[1:]
	} else {
		a.step(step{Do: doDir, At: rootTree, Perm: 0o755, Own: true})
		a.regions = append(a.regions, region{"/", own, rootTree})
	}
	for _, d := range []string{"/proc", "/dev", "/sys"} {
		a.point(d)
		a.regions = append(a.regions, region{d, memory, ""})
	}
	a.memory("/dev/shm", tmpfsSize, 0o1777, false)
	for _, m := range mounts {
		if m.Kind == vocabulary.BindRO && slices.Contains(ownSys, m.Target) {
			continue
		}
		if err := a.mount(m, tmpfsSize); err != nil {
			return nil, fmt.Errorf("mount %s (%s): %w", m.Target, m.Why, err)
		}
	}
	for at, l := range a.layerAt {
		if a.covering(l).at != at {
			return nil, vocabulary.Exitf(vocabulary.ExitRefused, "the staged workspace %s is covered by another mount\nnothing was started", l)
		}
	}
	if spec.Writes != nil {
		for _, f := range spec.Writes.Folders {
			r := a.covering(f.Path)
			if r.ground != writable {
				return nil, vocabulary.Exitf(vocabulary.ExitRefused, "the writable folder %s is covered by another mount\nnothing was started", f.Path)
			}
			a.guarded = append(a.guarded, guarded{f.Path, r.place(f.Path)})
		}
	}
	a.supervisor(self)
	for _, m := range a.mounts {
		if !utf8.ValidString(m.Target) {
			return nil, vocabulary.Exitf(vocabulary.ExitNoIsolation,
				"the name of %q is not UTF-8, and gVisor mounts no such folder; nothing was started\nrename it, or use --isolation process", m.Target)
		}
	}
	return &a.arrangement, nil
}

// root puts an image in. What is below its layer is never moved or changed from
// inside; all that stands in it is a mount of gVisor's, or in the cradle's layer.
func (a *arranger) root(m vocabulary.Mount, tmpfsSize int64) error {
	if m.Target != "/" || !path.IsAbs(m.Source) || path.Clean(m.Source) != m.Source || m.Size < 0 {
		return fmt.Errorf("mount / (%s): source %q, size %d", m.Why, m.Source, m.Size)
	}
	s := step{Do: doRoot, At: rootTree, Source: m.Source, Own: true}
	if i := slices.IndexFunc(a.judged, func(j sandbox.Identity) bool { return j.Path == "/" }); i >= 0 {
		s.Dev, s.Ino = a.judged[i].Dev, a.judged[i].Ino
	}
	a.step(s)
	a.regions = append(a.regions, region{"/", imaged, rootTree})
	a.image, a.size = true, cmp.Or(m.Size, tmpfsSize)
	return nil
}

// ownSys are parts of the host's /sys that plans show and gVisor makes itself.
var ownSys = []string{"/sys/devices/system/cpu", "/sys/devices/system/node"}

func (a *arranger) step(s step) { a.steps = append(a.steps, s) }

// covering is the region that decides what stands at target.
func (a *arranger) covering(target string) region {
	for _, r := range slices.Backward(a.regions) {
		if below(target, r.target) {
			return r
		}
	}
	return a.regions[0]
}

// place is where a path of the sandbox stands in a region's part of the
// cradle's root.
func (r region) place(target string) string {
	rel := strings.TrimPrefix(strings.TrimPrefix(target, r.target), "/")
	return path.Join(r.at, rel)
}

// tree begins a new tree of its own, to be mounted by gVisor.
func (a *arranger) tree() string {
	at := treeDir + "/" + strconv.Itoa(a.trees)
	a.trees++
	return at
}

// point makes the mount point that runsc needs in the root's tree: it looks
// past what is memory.
func (a *arranger) point(target string) {
	for _, r := range slices.Backward(a.regions) {
		if r.ground != memory && below(target, r.target) {
			a.step(step{Do: doDir, At: r.place(target), Perm: 0o755, Own: r.ground == own, Image: r.ground == imaged})
			return
		}
	}
}

func (a *arranger) memory(target string, size int64, perm uint32, ro bool) {
	if r := a.covering(target); r.ground != memory && r.target != target {
		a.point(target)
	}
	a.mounts = append(a.mounts, mount{Target: target, Size: size, Perm: perm, RO: ro})
	a.regions = append(a.regions, region{target, memory, ""})
}

// stand puts s at target: directly where nothing inside could move it away,
// otherwise as a mount of gVisor's. It returns where that is.
func (a *arranger) stand(target string, s step) string {
	r := a.covering(target)
	if s.RO && (r.ground == own || r.ground == readOnly) {
		s.At, s.Own = r.place(target), r.ground == own
		a.step(s)
		return s.At
	}
	point := step{Do: doDir, At: "", Perm: 0o755}
	for _, h := range slices.Backward(a.regions) {
		if h.ground != memory && below(target, h.target) {
			point.At, point.Own, point.Image = h.place(target), h.ground == own, h.ground == imaged
			break
		}
	}
	s.At, s.Own = a.tree(), true
	a.step(s)
	point.Source = s.At // a file's mount point is a file
	a.step(point)
	a.mounts = append(a.mounts, mount{Target: target, Source: s.At, RO: s.RO})
	return s.At
}

func (a *arranger) mount(m vocabulary.Mount, tmpfsSize int64) error {
	if err := checkTarget(m); err != nil {
		return err
	}
	switch m.Kind {
	case vocabulary.BindRO, vocabulary.BindRW, vocabulary.Overlay:
		s := step{Do: doBind, Source: m.Source, RO: m.Kind == vocabulary.BindRO}
		if i := slices.IndexFunc(a.judged, func(j sandbox.Identity) bool { return j.Path == m.Target }); i >= 0 && m.Kind != vocabulary.Overlay {
			s.Dev, s.Ino = a.judged[i].Dev, a.judged[i].Ino
		}
		if m.Kind == vocabulary.Overlay {
			s.Layer = true
			a.layers = append(a.layers, m)
		}
		g := readOnly
		if !s.RO {
			g = writable
		}
		at := a.stand(m.Target, s)
		a.regions = append(a.regions, region{m.Target, g, at})
		if s.Layer {
			a.layerAt[at] = m.Target
		}
	case vocabulary.Tmpfs:
		size, perm := m.Size, m.Perm
		if size == 0 {
			size = tmpfsSize
		}
		if perm == 0 {
			perm = 0o755
		}
		a.memory(m.Target, size, perm, false)
	case vocabulary.Dir:
		at := a.stand(m.Target, step{Do: doFrame, Perm: cmp.Or(m.Perm, 0o755), RO: true})
		a.regions = append(a.regions, region{m.Target, own, at})
	case vocabulary.Data:
		perm := m.Perm
		if perm == 0 {
			perm = 0o444
		}
		if r := a.covering(m.Target); r.ground == imaged {
			a.step(step{Do: doData, At: r.place(m.Target), Data: m.Data, Perm: perm, Image: true})
			break
		}
		a.stand(m.Target, step{Do: doData, Data: m.Data, Perm: perm, RO: true})
	case vocabulary.File:
		perm := m.Perm
		if perm == 0 {
			perm = 0o600
		}
		if a.covering(m.Target).ground != memory {
			return fmt.Errorf("a private file there lies in no tmpfs")
		}
		a.files = append(a.files, guest.File{Path: []byte(m.Target), Data: m.Data, Perm: perm})
	case vocabulary.Symlink:
		r := a.covering(m.Target)
		if r.ground == memory {
			a.links = append(a.links, guest.Link{Path: []byte(m.Target), To: []byte(m.Source)})
			break
		}
		a.step(step{Do: doLink, At: r.place(m.Target), Source: m.Source, Own: r.ground == own, Image: r.ground == imaged})
	case vocabulary.MaskFile:
		if r := a.covering(m.Target); r.ground == writable {
			// Here too: runsc opens what it mounts over, and a socket can't be.
			a.step(step{Do: doMaskFile, At: r.place(m.Target), RO: true})
		}
		a.stand(m.Target, step{Do: doMaskFile, RO: true})
	case vocabulary.MaskDir:
		if r := a.covering(m.Target); r.ground == writable || r.ground == memory {
			a.memory(m.Target, 4096, m.Perm, true)
			break
		}
		at := a.stand(m.Target, step{Do: doMaskDir, Perm: m.Perm, RO: true})
		a.regions = append(a.regions, region{m.Target, readOnly, at})
	default:
		return fmt.Errorf("unknown kind %d", m.Kind)
	}
	return nil
}

// memoryFileSystems are where something can be kept in memory.
func (a *arrangement) memoryFileSystems() []string {
	all := []string{"/dev"}
	if a.image {
		all = append(all, "/") // its layer
	}
	for _, m := range a.mounts {
		if m.Source == "" && !m.RO {
			all = append(all, m.Target)
		}
	}
	return all
}

// supervisor puts our binary in, and the name by which it is started.
func (a *arranger) supervisor(self string) {
	at := ""
	if r := a.covering(guest.Dir); r.ground == own {
		at = r.place(guest.Dir)
		a.step(step{Do: doDir, At: at, Perm: 0o755, Own: true})
	} else {
		at = a.stand(guest.Dir, step{Do: doDir, Perm: 0o755, RO: true})
	}
	a.step(step{Do: doBind, At: at + "/" + path.Base(guest.Path), Source: self, RO: true, Own: true})
	a.step(step{Do: doLink, At: at + "/" + path.Base(supervisor), Source: path.Base(guest.Path), Own: true})
}

// supervisor is the sandbox's first program; its name is what the child
// dispatch sees.
var supervisor = guest.Path + "-" + guest.Child

// below says whether p is dir or lies in it.
func below(p, dir string) bool {
	return p == dir || dir == "/" || strings.HasPrefix(p, dir+"/")
}

func checkTarget(m vocabulary.Mount) error {
	clean := func(p string) bool { return path.IsAbs(p) && path.Clean(p) == p && !strings.Contains(p, "\x00") }
	switch {
	case !clean(m.Target):
		return fmt.Errorf("target is not an absolute, clean path")
	case m.Target == "/" || m.Kind == vocabulary.Root:
		return fmt.Errorf("the root can only be mounted first")
	case m.Kind.ShowsHost() && !clean(m.Source):
		return fmt.Errorf("source %q is not an absolute, clean path", m.Source)
	case m.Kind == vocabulary.Overlay && (m.Source != m.Target || !clean(m.Layer)):
		return fmt.Errorf("an overlay stands at its source, and has a layer")
	case m.Kind == vocabulary.Symlink && (m.Source == "" || strings.Contains(m.Source, "\x00")):
		return fmt.Errorf("link to %q", m.Source)
	case m.Size < 0 || m.Perm&^0o7777 != 0:
		return fmt.Errorf("size %d, mode %o", m.Size, m.Perm)
	case m.Target == "/dev" || m.Target == "/sys" || below(m.Target, "/proc") || below(m.Target, guest.Dir):
		return fmt.Errorf("%s is the sandbox's own", m.Target)
	}
	for _, kernels := range []string{"/proc", "/dev", "/sys", "/run"} {
		// A writable host folder there would be a door to the kernel's files.
		if (m.Kind == vocabulary.BindRW || m.Kind == vocabulary.Overlay) && (m.Source == kernels || kernels != "/run" && below(m.Source, kernels)) {
			return fmt.Errorf("%s of the host can't be mounted writable", m.Source)
		}
	}
	return nil
}
