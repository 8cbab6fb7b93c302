package main

import (
	"sync"
	"time"
	_ "unsafe" // for linkname

	"gvisor.dev/gvisor/pkg/atomicbitops"
	"gvisor.dev/gvisor/pkg/hostarch"
)

// gVisor decides 2,500 times a second whether threads that change between a program
// and its kernel are to spin, also if no program runs: an idle sandbox so takes some
// three hundredths of a processor, and a few dozen of them all of it. steer makes the
// same decisions by the same functions, and looks less often while there is nothing
// to decide on. TestSteering compares the variables with gVisor's.

const (
	period = 400 * time.Microsecond // gVisor's
	rest   = 100 * time.Millisecond
	// patience is for how many periods nothing happens before it rests.
	patience = 250
)

type switches [80]atomicbitops.Uint64

//go:linkname latencies gvisor.dev/gvisor/pkg/sentry/platform/systrap.latencies
var latencies struct {
	stubBound   switches
	sentryBound switches
}

type state struct {
	stubBoundBaselineLatency    switches
	sentryBoundBaselineLatency  switches
	stubFPBackoff               int
	sentryFPBackoff             int
	stubFPRecentFailures        int
	sentryFPRecentFailures      int
	consecutiveStubFPFailures   int
	consecutiveSentryFPFailures int
	_                           [hostarch.CacheLineSize]byte
	stubFastPathEnabled         atomicbitops.Bool
	_                           [hostarch.CacheLineSize]byte
	sentryFastPathEnabled       atomicbitops.Bool
	_                           [hostarch.CacheLineSize]byte
	nrMaxAwakeStubThreads       atomicbitops.Uint32
	_                           [hostarch.CacheLineSize]byte
	usedStubFastPath            atomicbitops.Bool
	_                           [hostarch.CacheLineSize]byte
	usedSentryFastPath          atomicbitops.Bool
	_                           [hostarch.CacheLineSize]byte
	curState                    func(*state)
}

//go:linkname fastpath gvisor.dev/gvisor/pkg/sentry/platform/systrap.fastpath
var fastpath state

//go:linkname fastPathContextLimit gvisor.dev/gvisor/pkg/sentry/platform/systrap.fastPathContextLimit
var fastPathContextLimit uint32

//go:linkname maxSysmsgThreads gvisor.dev/gvisor/pkg/sentry/platform/systrap.maxSysmsgThreads
var maxSysmsgThreads int

//go:linkname latencyMonitoring gvisor.dev/gvisor/pkg/sentry/platform/systrap.latencyMonitoring
var latencyMonitoring sync.Once

// steer takes the place of gVisor's own loop, which New of the platform starts once.
func steer() { latencyMonitoring.Do(func() { go loop() }) }

func loop() {
	var seen uint64
	quiet, pause := 0, period
	for {
		time.Sleep(pause)
		if counted() != seen {
			quiet, pause = 0, period
		} else if quiet++; quiet > patience {
			pause = rest
			continue
		}
		fastPathContextLimit = uint32(maxSysmsgThreads * 2)
		fastpath.curState(&fastpath)
		fastpath.usedStubFastPath.Store(false)
		fastpath.usedSentryFastPath.Store(false)
		seen = counted()
	}
}

// counted is how often somebody changed between a program and its kernel since the
// last decision.
func counted() (n uint64) {
	for i := range latencies.stubBound {
		n += latencies.stubBound[i].Load() + latencies.sentryBound[i].Load()
	}
	return n
}
