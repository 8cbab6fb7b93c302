package session

import (
	"runtime/debug"
	"time"
)

var usual = 100 // per cent, GOGC

// HoldGarbage puts off the controller's garbage collections until Run's command has
// run for a second: a start makes some 10 MiB in a few hundredths of one, in which three
// collections would take processor time from the processes that it waits for. To be
// called once, before anything is read; the first collection then comes at 16 MiB and
// not at 4.
func HoldGarbage() { usual = debug.SetGCPercent(400) }

// collectAgain waits, because it begins with a collection of all that the start made,
// for which a command that is done at once would have to wait.
func collectAgain() { time.AfterFunc(time.Second, func() { debug.SetGCPercent(usual) }) }
