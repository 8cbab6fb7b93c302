// Package policy turns the bytes of a policy file into a Policy in which every
// item knows the line it came from, merges presets in, and renders the result
// back as a file.
//
// It runs in the controller and in the command line, on bytes that somebody
// else has read: the package itself opens nothing, looks up nothing, and keeps
// no state. The grammar is DESIGN section 4 and is strict: unknown and
// duplicate keys, anchors, aliases, tags, merge keys, a second document and
// values that could mean two things are errors, and Parse reports all of them
// at once, each with its position and with what to write instead.
//
// Keys beyond DESIGN section 4: optional on a mount and on a credential, and
// header and scheme on a raw http grant that has a credential. They exist
// because presets need them and because a rendered policy must say all that it
// means.
//
// An empty or absent list never grants anything. What a file does not say
// comes from Default of its profile, and carries the position
// "default:PROFILE". Sizes are bytes, durations are time.Duration.
//
// What only others can judge (does the service exist, does it have the
// operation) is asked of them through Checks, so that those errors appear in
// the same list.
package policy

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// At is a value with the place in a file where it stands.
type At[T any] struct {
	Value T
	Pos   vocabulary.Position
}

// Policy is a policy file, with the profile's defaults filled in.
type Policy struct {
	File string // as the user named it; "default:PROFILE" without a file

	Profile      vocabulary.Profile
	ProfilePos   vocabulary.Position
	Isolation    vocabulary.Isolation
	IsolationPos vocabulary.Position

	// Image is where a container's root comes from; its zero value: the host's
	// system directories.
	Image Image

	// Presets are the names that Expand will merge in. Expanded are those that
	// it did merge in, included ones too; then Presets is empty.
	Presets  []At[string]
	Expanded []At[string]

	Workspace Workspace
	Mounts    []Mount

	// EnvPass are names of the host's environment that get in.
	EnvPass []At[string]
	EnvSet  []EnvVar
	// EnvFiles stand in the private home: Name is a path that begins with "~/".
	EnvFiles []EnvVar

	Grants      []Grant
	Credentials []Credential
	Upstreams   []Upstream
	Publish     []Published
	Limits      Limits

	// Within are the bounds that Narrow has applied, Narrowed what they changed.
	// What passes is what the policy and all of them grant.
	Within   []*Bounds
	Narrowed []Narrowing
}

// Published makes a port of the sandbox's loopback reachable on this host's
// loopback.
type Published struct {
	Host, Inside int // 1 to 65535
	Pos          vocabulary.Position
}

// Workspace is where the command starts. Path is absolute, starts with "~/",
// or is relative to where run was called; see ResolvePath.
type Workspace struct {
	Path string
	Mode vocabulary.MountMode
	// Writable are kinds of protected files that may be written to by choice, in
	// every writable folder of the session: Environments.
	Writable []At[string]
	Pos      vocabulary.Position
}

// Environments are the protected files of Python environments, as Workspace.Writable
// and ProtectedPath.Kind name them.
const Environments = "environments"

// IsWritable reports whether a kind of protected files may be written to by choice.
func (w Workspace) IsWritable(kind string) bool {
	return slices.ContainsFunc(w.Writable, func(v At[string]) bool { return v.Value == kind })
}

// Mount shows one path of the host, at the same path, inside. Path as in
// Workspace. An Optional mount is left out when the host has no such path.
type Mount struct {
	Path     string
	Mode     vocabulary.MountMode
	Optional bool
	Pos      vocabulary.Position
}

// EnvVar sets one variable. "${HOME}" in Value means the home directory
// inside; Expand replaces it.
type EnvVar struct {
	Name, Value string
	Pos         vocabulary.Position
}

// Grant permits. Exactly one of Service, HTTP, TCP and SSH is set.
type Grant struct {
	Pos vocabulary.Position

	// The typed form: operations of a service of the catalogue. Operations is
	// never empty; no Resources means all resources of these operations.
	Service    string
	Operations []At[string]
	Resources  []At[string]

	// The raw form: HTTP is a URL pattern in canonical form (ParseURLPattern).
	// Methods is never empty.
	HTTP    string
	Methods []string

	// The opaque form: "host:port". Nothing in it can be inspected.
	TCP string

	// Git over SSH to a server that the catalogue does not know: SSH is an
	// SSHTarget in canonical form. Operations and Resources as with Service, but
	// there is no grant without Resources, nor without Credential.
	SSH string

	// Credential names one of Credentials, or is empty. Only with Service or
	// HTTP. For HTTP, Header (lower case) and Scheme ("Bearer", "Basic" or
	// none) say in which slot it travels; for Service the catalogue says.
	Credential     string
	CredentialPos  vocabulary.Position
	Header, Scheme string
}

// Credential says where a secret is to be found by the broker. Exactly one of
// Env, File, Command, Keyring, AWS (a profile), Google ("adc") and Azure (an
// audience), SSH and Login is set. Command runs on the host without a
// shell. An Optional credential may be missing: then the session starts
// without it.
type Credential struct {
	Name    string
	Env     string
	File    string
	Command []string
	Keyring string
	AWS     string
	Google  string
	Azure   string
	SSH     string // SSHAgent or the path of a key; nothing of it gets inside
	// Login names a program whose login on the host is used and refreshed there.
	// Account, if set, is the only account that may be used. AllowLogin lets a
	// login begun inside complete, of the account that is known.
	Login      string
	Account    string
	AllowLogin bool
	// Or are sources to try, in turn, where the first one has nothing.
	Or       []Credential
	Optional bool
	Pos      vocabulary.Position
}

// Upstream says where a name really lives. Host is a name, "*.name" for all
// names below it, or "*"; the narrowest entry counts. Connect is "ip:port". Proxy
// is the URL of an HTTP proxy that understands CONNECT, or Direct; Credential
// names the one that holds its user:password, or is empty. CA is the path of a
// PEM file or empty: for a name, what alone vouches for it; for "*" and "*.name",
// further roots beside the host's.
type Upstream struct {
	Host          string
	Connect       string
	CA            string
	Proxy         string
	Credential    string
	CredentialPos vocabulary.Position
	Pos           vocabulary.Position
}

// Limits of a session. Zero is no limit. Pos says who set those that are set.
type Limits struct {
	Memory int64 // bytes
	PIDs   int
	CPUs   float64
	Wall   time.Duration
	// Bytes to and from upstreams, in all and for each host.
	Upload, Download, UploadEach, DownloadEach At[int64]
	// Bytes that may be written to the root that an image made.
	Root At[int64]
	// What a session keeps in its private file systems and its layer.
	Disk, Inodes At[int64] // bytes; files and folders
	Descriptors  At[int64] // open at a time, of each process
	Idle         At[int64] // nanoseconds without anything happening
	Pos          LimitPositions
}

// amount is one of the limits that are numbers, by its key.
type amount struct {
	key  string
	of   *At[int64]
	what string // in plain words
	read func(*yaml.Node) (int64, *problem)
	show func(int64) string
}

func (l *Limits) amounts() []amount {
	size := func(key string, of *At[int64], what string, least int64) amount {
		return amount{key, of, what, func(n *yaml.Node) (int64, *problem) { return parseSizeFrom(n.Value, least) }, sizeString}
	}
	count := func(key string, of *At[int64], what string, least, most int64) amount {
		return amount{key, of, what, func(n *yaml.Node) (int64, *problem) { return parseCount(key, n, least, most) },
			func(n int64) string { return strconv.FormatInt(n, 10) }}
	}
	return []amount{
		size("upload", &l.Upload, "bytes of upload", 0), size("download", &l.Download, "bytes of download", 0),
		size("upload-each", &l.UploadEach, "bytes of upload-each", 0), size("download-each", &l.DownloadEach, "bytes of download-each", 0),
		size("root", &l.Root, "bytes written to an image's root", 0),
		size("disk", &l.Disk, "bytes kept in private folders and a staged layer", 1<<20),
		count("inodes", &l.Inodes, "files and folders kept there", 1000, math.MaxInt32),
		count("descriptors", &l.Descriptors, "open descriptors of a process", 256, 1<<20),
		{"idle", &l.Idle, "time without anything happening",
			func(n *yaml.Node) (int64, *problem) { d, p := parseWall(n.Value); return int64(d), p },
			func(n int64) string { return wallString(time.Duration(n)) }},
	}
}

// LimitPositions are the places of the limits.
type LimitPositions struct{ Memory, PIDs, CPUs, Wall vocabulary.Position }

// Preset is a named, reviewable bundle for an agent or a toolchain.
type Preset struct {
	Name        string
	Description string
	// Commands are the names of the programs it is for.
	Commands []string
	// Presets are merged in with it.
	Presets     []At[string]
	Mounts      []Mount
	EnvPass     []At[string]
	EnvSet      []EnvVar
	EnvFiles    []EnvVar
	Grants      []Grant
	Credentials []Credential
	Publish     []Published
}

// Default is what a session gets that has no policy file: no egress at all,
// the current directory as a writable workspace, and nothing of the host's
// environment but terminal and language. MISSION.md's table of patterns says
// which isolation belongs to which profile.
func Default(p vocabulary.Profile) *Policy {
	pos := vocabulary.Position{File: "default:" + string(p)}
	d := &Policy{
		File: pos.File, Profile: p, ProfilePos: pos, IsolationPos: pos,
		Workspace: Workspace{Path: ".", Mode: vocabulary.ReadWrite, Pos: pos},
	}
	pass := []string{"TERM", "COLORTERM", "NO_COLOR", "LANG", "LC_ALL", "LC_CTYPE", "TZ"}
	switch p {
	case vocabulary.Developer:
		d.Isolation = vocabulary.Process
		d.Limits.PIDs, d.Limits.Pos.PIDs = 4096, pos
	case vocabulary.KnowledgeWorker:
		d.Isolation = vocabulary.VM
		d.Limits.PIDs, d.Limits.Pos.PIDs = 4096, pos
	default:
		d.Profile, d.Isolation = vocabulary.Server, vocabulary.Container
		d.Limits = Limits{Memory: 2 << 30, PIDs: 512, CPUs: 2, Wall: time.Hour, Pos: LimitPositions{pos, pos, pos, pos}}
		pass = []string{"LANG", "TZ"}
	}
	for _, name := range pass {
		d.EnvPass = append(d.EnvPass, At[string]{name, pos})
	}
	return d
}

func isDefault(pos vocabulary.Position) bool { return strings.HasPrefix(pos.File, "default:") }

// SetProfile changes the profile, as --profile does: what the file says stays,
// what came from the old profile's defaults comes from the new one's.
func (p *Policy) SetProfile(profile vocabulary.Profile) {
	d := Default(profile)
	p.Profile, p.ProfilePos = d.Profile, d.ProfilePos
	if isDefault(vocabulary.Position{File: p.File}) {
		p.File = d.File
	}
	if isDefault(p.IsolationPos) {
		p.Isolation, p.IsolationPos = d.Isolation, d.IsolationPos
	}
	if isDefault(p.Workspace.Pos) {
		p.Workspace = d.Workspace
	}
	if len(p.EnvPass) > 0 && isDefault(p.EnvPass[0].Pos) {
		p.EnvPass = withoutSet(d.EnvPass, p.EnvSet)
	}
	l, from := &p.Limits, d.Limits
	if l.Pos.Memory.File == "" || isDefault(l.Pos.Memory) {
		l.Memory, l.Pos.Memory = from.Memory, from.Pos.Memory
	}
	if l.Pos.PIDs.File == "" || isDefault(l.Pos.PIDs) {
		l.PIDs, l.Pos.PIDs = from.PIDs, from.Pos.PIDs
	}
	if l.Pos.CPUs.File == "" || isDefault(l.Pos.CPUs) {
		l.CPUs, l.Pos.CPUs = from.CPUs, from.Pos.CPUs
	}
	if l.Pos.Wall.File == "" || isDefault(l.Pos.Wall) {
		l.Wall, l.Pos.Wall = from.Wall, from.Pos.Wall
	}
}
