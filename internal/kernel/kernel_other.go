//go:build !linux

package kernel

import (
	"context"
	"errors"
	"os"
	"runtime"
)

var errNeedsLinux = errors.New("needs Linux")

// Examine reports that every isolation needs Linux.
func Examine(context.Context) Report {
	r := Report{OS: runtime.GOOS, Arch: runtime.GOARCH, UID: os.Getuid(), Probes: []Probe{{
		Name:  ProbeKernel,
		Found: runtime.GOOS + ", not Linux",
		Cost:  "no isolation; bulkhead can check and explain policies here, and run nothing",
	}}}
	r.Summary = r.summarise(LimitsWatched)
	return r
}

// LandlockABI returns 0: there is no Landlock.
func LandlockABI() int { return 0 }

// TUNUsable says that a TUN device needs Linux.
func TUNUsable() error { return errNeedsLinux }

// FindTool finds nothing.
func FindTool(string) (string, error) { return "", errNeedsLinux }

// FindCgroups finds nothing.
func FindCgroups() Cgroups { return Cgroups{} }
