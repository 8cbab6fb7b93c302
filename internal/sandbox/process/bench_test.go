//go:build linux

package process

import (
	"context"
	"os/exec"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/sandboxtest"
)

// The pairs to compare: a ready sandbox against bubblewrap alone.
func BenchmarkBareBwrap(b *testing.B) {
	for b.Loop() {
		if err := exec.Command("bwrap", "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "true").Run(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPrepare(b *testing.B) {
	for name, c := range map[string]struct {
		network sandbox.NetworkKind
		limits  sandbox.Limits
	}{
		"none":   {network: sandbox.NetNone},
		"relay":  {network: sandbox.NetRelay},
		"tap":    {network: sandbox.NetTAP},
		"limits": {network: sandbox.NetNone, limits: sandbox.Limits{Memory: 1 << 30, PIDs: 200, CPUs: 1}},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				spec := sandboxtest.Spec(c.network)
				spec.Limits = c.limits
				i, err := (&Backend{}).Prepare(context.Background(), spec)
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if l := i.Link(); l != nil {
					l.Close()
				}
				i.Kill()
				b.StartTimer()
			}
		})
	}
}

func BenchmarkRunTrue(b *testing.B) {
	for b.Loop() {
		i, err := (&Backend{}).Prepare(context.Background(), sandboxtest.Spec(sandbox.NetNone))
		if err != nil {
			b.Fatal(err)
		}
		p, err := i.Start(context.Background(), sandbox.Command{Argv: []string{"true"}, Env: sandboxtest.Env, Dir: "/"})
		if err == nil {
			_, err = p.Wait()
		}
		if err != nil {
			b.Fatal(err)
		}
		i.Kill()
	}
}

func BenchmarkStartTrue(b *testing.B) {
	i := sandboxtest.Prepare(b, &Backend{}, sandboxtest.Spec(sandbox.NetNone))
	for b.Loop() {
		p, err := i.Start(context.Background(), sandbox.Command{Argv: []string{"true"}, Env: sandboxtest.Env, Dir: "/"})
		if err == nil {
			_, err = p.Wait()
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}
