package session

import "runtime/debug"

var usual = 100 // per cent, GOGC

// HoldGarbage puts off the controller's garbage collections until Run's command runs: a
// start makes some 10 MiB in a few hundredths of a second, in which three collections
// would take processor time from the processes that it waits for. To be called once,
// before anything is read; the first collection then comes at 16 MiB and not at 4.
func HoldGarbage() { usual = debug.SetGCPercent(400) }

func collectAgain() { debug.SetGCPercent(usual) }
