package truststore

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

func discard() *log.Logger { return log.New(io.Discard, "", 0) }

// TestMain is also the Go client that the test runs inside.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "fetch" {
		resp, err := http.Get(os.Args[2])
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		io.Copy(os.Stdout, resp.Body)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// basePlan is the least that the clients need.
func basePlan(scratch string) []vocabulary.Mount {
	plan := []vocabulary.Mount{{Kind: vocabulary.BindRO, Source: "/usr", Target: "/usr"}, {Kind: vocabulary.BindRO, Source: "/etc", Target: "/etc"}}
	for _, d := range []string{"/bin", "/sbin", "/lib", "/lib64"} {
		if text, err := os.Readlink(d); err == nil {
			plan = append(plan, vocabulary.Mount{Kind: vocabulary.Symlink, Source: text, Target: d})
		} else if _, err := os.Stat(d); err == nil {
			plan = append(plan, vocabulary.Mount{Kind: vocabulary.BindRO, Source: d, Target: d})
		}
	}
	return append(plan, vocabulary.Mount{Kind: vocabulary.Tmpfs, Target: "/tmp", Size: 1 << 28},
		vocabulary.Mount{Kind: vocabulary.BindRO, Source: scratch, Target: "/tmp/scratch"},
		vocabulary.Mount{Kind: vocabulary.Tmpfs, Target: "/run", Size: 1 << 28})
}

func inside(t *testing.T, mounts []vocabulary.Mount, env []string, script string) (string, error) {
	t.Helper()
	args := []string{"--unshare-user", "--unshare-pid", "--unshare-ipc", "--die-with-parent", "--clearenv", "--setenv", "HOME", "/tmp", "--setenv", "PATH", "/usr/bin:/bin", "--dev", "/dev", "--proc", "/proc"}
	for _, kv := range env {
		k, v, _ := strings.Cut(kv, "=")
		args = append(args, "--setenv", k, v)
	}
	dir := t.TempDir()
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	fd := func(b []byte) string {
		name := filepath.Join(dir, strconv.Itoa(len(files)))
		os.WriteFile(name, b, 0o600)
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
		return strconv.Itoa(2 + len(files))
	}
	var filled []string
	for _, m := range mounts {
		switch m.Kind {
		case vocabulary.BindRO:
			args = append(args, "--ro-bind", m.Source, m.Target)
		case vocabulary.Tmpfs:
			args = append(args, "--perms", fmt.Sprintf("%04o", max(m.Perm, 0o555)), "--size", strconv.FormatInt(m.Size, 10), "--tmpfs", m.Target)
		case vocabulary.Dir:
			args = append(args, "--tmpfs", m.Target)
			filled = append(filled, "--remount-ro", m.Target)
		case vocabulary.Symlink:
			args = append(args, "--symlink", m.Source, m.Target)
		case vocabulary.Data:
			args = append(args, "--perms", fmt.Sprintf("%04o", m.Perm), "--ro-bind-data", fd(m.Data), m.Target)
		case vocabulary.MaskFile:
			args = append(args, "--perms", "0000", "--ro-bind-data", fd(nil), m.Target)
		default:
			t.Fatalf("mount %+v", m)
		}
	}
	args = append(args, filled...)
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bwrap", "--args", fd([]byte(strings.Join(args, "\x00")+"\x00")), "/bin/sh", "-c", script)
	cmd.ExtraFiles = files
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

const javaClient = `
import java.net.*; import java.util.*;
public class Fetch { public static void main(String[] a) throws Exception {
  System.out.print(new String(new URL(a[0]).openStream().readAllBytes())); } }`

// TestClients proves with real programs that each accepts the session's
// authority with the mounts, most of them with an empty environment, and none
// without the mounts.
func TestClients(t *testing.T) {
	for _, need := range []string{"bwrap", "curl"} {
		if _, err := exec.LookPath(need); err != nil {
			t.Skipf("no %s: not proven that programs trust the session's authority", need)
		}
	}
	scratch := t.TempDir()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(scratch, "client"), self, 0o755)
	os.WriteFile(filepath.Join(scratch, "Fetch.java"), []byte(javaClient), 0o644)
	ca := newCA(t)
	port := serve(t, ca)
	url := "https://localhost:" + port + "/"
	plan := basePlan(scratch)
	trust, err := forHost(ca, plan, "/nonexistent", "")
	if err != nil {
		t.Fatal(err)
	}
	with := append(append([]vocabulary.Mount(nil), plan...), trust.Mounts...)

	type client struct {
		name, script string
		alone        bool // accepts by the system's store alone
	}
	clients := []client{
		{"curl", "curl -sS " + url, true},
		{"git", "git ls-remote " + url + "repo", true},
		{"python3", `python3 -c 'import urllib.request,sys; print(urllib.request.urlopen(sys.argv[1]).read())' ` + url, true},
		{"node", `node -e 'fetch(process.argv[1]).then(r=>r.text()).then(console.log).catch(e=>{console.log(e.cause);process.exit(1)})' ` + url, false},
		{"node", `node -e 'require("https").get(process.argv[1],r=>r.pipe(process.stdout)).on("error",e=>{console.log(e);process.exit(1)})' ` + url, false},
		{"openssl", "echo | openssl s_client -verify_return_error -no-CAfile -CApath /etc/ssl/certs -connect localhost:" + port + " && echo reached", true},
		{"openssl", "echo | openssl s_client -verify_return_error -connect localhost:" + port + " && echo reached", true},
		{"wget", "wget -qO- " + url, true},
		{"go", "/tmp/scratch/client fetch " + url, true},
		{"pip", `python3 -c 'import sys; from pip._vendor import requests; print(requests.get(sys.argv[1]).text)' ` + url, false},
	}
	for _, jdk := range glob("/", "usr/lib/jvm/*") {
		if st, err := os.Lstat(jdk); err == nil && st.IsDir() {
			if _, err := os.Stat(jdk + "/bin/javac"); err == nil {
				clients = append(clients, client{"java", jdk + "/bin/java /tmp/scratch/Fetch.java " + url, true},
					client{"keytool", jdk + "/bin/keytool -list -cacerts -storepass changeit | grep bulkhead-session-ca && echo reached", true})
			}
		}
	}
	for _, c := range clients {
		if c.name != "go" && c.name != "pip" {
			if _, err := os.Stat("/usr/bin/" + c.name); err != nil {
				t.Logf("no %s on this host: not proven for it", c.name)
				continue
			}
		}
		if out, err := inside(t, plan, nil, c.script); err == nil && strings.Contains(out, "reached") {
			t.Errorf("%s trusts without the store:\n%s", c.script, out)
		} else if c.name == "pip" && strings.Contains(out, "No module named") {
			t.Logf("no pip for the system's python3: not proven for it")
			continue
		}
		if out, err := inside(t, with, trust.Env, c.script); err != nil || !strings.Contains(out, "reached") {
			t.Errorf("%s does not trust the session: %v\n%s", c.script, err, out)
		}
		if out, err := inside(t, with, nil, c.script); c.alone && (err != nil || !strings.Contains(out, "reached")) {
			t.Errorf("%s with an empty environment does not trust the session: %v\n%s", c.script, err, out)
		}
	}
}

// hiddenRoot is a plan in which the root that shares our hash is hidden, so
// that the directory is made anew.
func hiddenRoot(t *testing.T, plan []vocabulary.Mount) []vocabulary.Mount {
	t.Helper()
	real, err := filepath.EvalSymlinks("/etc/ssl/certs/" + hashName())
	if err != nil {
		t.Logf("this host has no %s: the directory is always made anew", hashName())
		return plan
	}
	return append(append([]vocabulary.Mount(nil), plan...), vocabulary.Mount{Kind: vocabulary.MaskFile, Target: real})
}

func TestHashedDirectoryMadeAnew(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("no openssl: the hashed directory is not proven")
	}
	ca := newCA(t)
	port := serve(t, ca)
	plan := hiddenRoot(t, basePlan(t.TempDir()))
	trust, err := forHost(ca, plan, "/nonexistent", "")
	if err != nil {
		t.Fatal(err)
	}
	script := "echo | openssl s_client -verify_return_error -no-CAfile -CApath /etc/ssl/certs -connect localhost:" + port + " && echo reached && curl -sS https://localhost:" + port
	if out, err := inside(t, append(append([]vocabulary.Mount(nil), plan...), trust.Mounts...), nil, script); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestHostRootsRemain: what the host trusts is still trusted, entry by entry.
func TestHostRootsRemain(t *testing.T) {
	base := basePlan(t.TempDir())
	const list = "cd /etc/ssl/certs && for f in * java/*; do [ -r $f ] && echo $f; done; grep -c BEGIN ca-certificates.crt"
	for name, plan := range map[string][]vocabulary.Mount{"beside": base, "anew": hiddenRoot(t, base)} {
		trust, err := forHost(newCA(t), plan, "", "")
		if err != nil {
			t.Fatal(err)
		}
		with := append(append([]vocabulary.Mount(nil), plan...), trust.Mounts...)
		before, err1 := inside(t, plan, nil, list)
		after, err2 := inside(t, with, nil, list)
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2, before, after)
		}
		lines := strings.Split(strings.TrimSpace(before), "\n")
		count, _ := strconv.Atoi(lines[len(lines)-1])
		for _, l := range append(lines[:len(lines)-1], hashName(), strconv.Itoa(count+1)) {
			if !strings.Contains("\n"+after, "\n"+l+"\n") {
				t.Errorf("%s: %s is missing", name, l)
			}
		}
		if len(pemCerts(trust.Roots)) != count {
			t.Errorf("%s: %d host roots, want %d", name, len(pemCerts(trust.Roots)), count)
		}
		if out, err := inside(t, with, nil, "echo x > /etc/ssl/certs/ca-certificates.crt || rm /etc/ssl/certs/java/cacerts"); err == nil {
			t.Errorf("%s: the store can be changed inside: %s", name, out)
		}
		for _, m := range trust.Mounts {
			if bytes.Contains(m.Data, []byte("PRIVATE KEY")) {
				t.Errorf("%s holds a key", m.Target)
			}
		}
		t.Logf("%s: %d mounts", name, len(trust.Mounts))
	}
}

func TestOnlyWhatIsVisible(t *testing.T) {
	home := t.TempDir()
	jdk := filepath.Join(home, ".sdkman/candidates/java/21/lib/security")
	os.MkdirAll(jdk, 0o755)
	store := jksMake([][]byte{newCA(t).CertDER}, time.Now())
	os.WriteFile(filepath.Join(jdk, "cacerts"), store, 0o644)
	odd := filepath.Join(home, "odd/lib/security")
	os.MkdirAll(odd, 0o755)
	os.WriteFile(filepath.Join(odd, "cacerts"), []byte("no store"), 0o644)
	real, _ := filepath.EvalSymlinks(home)
	count := func(tr Trust) (n int) {
		for _, m := range tr.Mounts {
			if strings.HasPrefix(m.Target, real+"/") {
				n++
			}
		}
		return n
	}
	plan := []vocabulary.Mount{{Kind: vocabulary.BindRO, Source: "/etc", Target: "/etc"}, {Kind: vocabulary.Tmpfs, Target: real}}
	tr, err := forHost(newCA(t), plan, home, filepath.Join(home, "odd"))
	if err != nil || count(tr) != 0 {
		t.Errorf("a hidden JDK gets %d mounts (%v)", count(tr), err)
	}
	plan = append(plan, vocabulary.Mount{Kind: vocabulary.BindRO, Source: real, Target: real})
	tr, err = forHost(newCA(t), plan, home, filepath.Join(home, "odd"))
	if err != nil || count(tr) != 2 || len(tr.Warnings) != 1 {
		t.Errorf("two visible JDKs get %d mounts, %d warnings (%v)", count(tr), len(tr.Warnings), err)
	}
	if _, err := forHost(CA{}, plan, home, ""); err == nil {
		t.Error("no authority is no error")
	}
}

func BenchmarkFor(b *testing.B) {
	ca := newCA(b)
	plan := []vocabulary.Mount{{Kind: vocabulary.BindRO, Source: "/etc", Target: "/etc"}, {Kind: vocabulary.BindRO, Source: "/usr", Target: "/usr"}}
	for b.Loop() {
		if _, err := forHost(ca, plan, "/nonexistent", ""); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkNew(b *testing.B) {
	for b.Loop() {
		newCA(b)
	}
}

// TestImageJava: the JDKs of an image get the session's authority, in its own place,
// and no link of the image decides where that is.
func TestImageJava(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	for _, d := range []string{"usr/lib/jvm/java-17/lib/security", "opt/java/openjdk/jre/lib/security", "srv/odd/lib/security", "usr/lib/jvm/none/lib/security", "usr/lib/jvm/folder/lib/security/cacerts"} {
		os.MkdirAll(filepath.Join(root, d), 0o755)
	}
	os.MkdirAll(filepath.Join(outside, "lib/security"), 0o755)
	os.WriteFile(filepath.Join(outside, "lib/security/cacerts"), nil, 0o644)
	os.WriteFile(filepath.Join(root, "opt/java/openjdk/jre/lib/security/cacerts"), []byte("hostile"), 0o644)
	os.WriteFile(filepath.Join(root, "srv/odd/lib/security/cacerts"), nil, 0o644)
	for at, to := range map[string]string{
		"usr/lib/jvm/java-17/lib/security/cacerts": "/etc/ssl/certs/java/cacerts", // as Debian has it
		"usr/lib/jvm/default":                      "java-17",
		"usr/lib/jvm/away":                         outside,
		"usr/java":                                 outside,
	} {
		if err := os.Symlink(to, filepath.Join(root, at)); err != nil {
			t.Fatal(err)
		}
	}
	plan := []vocabulary.Mount{{Kind: vocabulary.Root, Source: root, Target: "/"}}
	ca := newCA(t)
	trust, err := For(ca, plan, []string{"A=b", "JAVA_HOME=/srv/odd"})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range trust.Mounts {
		if !strings.HasSuffix(m.Target, "/cacerts") {
			continue
		}
		got = append(got, m.Target)
		if certs, err := jksCerts(m.Data); m.Kind != vocabulary.Data || err != nil || !slices.ContainsFunc(certs, func(c []byte) bool { return bytes.Equal(c, ca.CertDER) }) {
			t.Errorf("%s: %v, %v", m.Target, m.Kind, err)
		}
	}
	want := []string{"/usr/lib/jvm/java-17/lib/security/cacerts", "/opt/java/openjdk/jre/lib/security/cacerts", "/srv/odd/lib/security/cacerts"}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}

	for i := range 40 { // no image makes the plan large
		os.MkdirAll(filepath.Join(root, "opt/jdk"+strings.Repeat("x", i), "lib/security"), 0o755)
		os.WriteFile(filepath.Join(root, "opt/jdk"+strings.Repeat("x", i), "lib/security/cacerts"), nil, 0o644)
	}
	if trust, err = For(ca, plan, nil); err != nil || len(trust.Mounts) > maxImageJDKs+10 {
		t.Errorf("%d mounts, %v", len(trust.Mounts), err)
	}
}
