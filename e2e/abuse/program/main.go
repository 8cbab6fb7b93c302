//go:build linux

// Command program is the three programs of the abuse lane, in one file that
// every sandbox can run:
//
//	program attack EACH ALL [NAME…]  inside: each attack in turn, for EACH, then all at once, for ALL
//	program measure                  inside: a request after the other, "OK µs" or "FAIL why" a line
//	program serve NAME…              outside: the upstream, told how it is reached on standard output
//
// attack says "begin NAME" and "end NAME BLOWS" of each attack, and "done". Its
// only judge is the test outside. All end with their standard input.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "program:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) > 1 && args[0] == "serve":
		return serve(args[1:])
	case len(args) == 1 && args[0] == "measure":
		measure()
		return nil
	case len(args) > 2 && args[0] == "attack":
		each, err := time.ParseDuration(args[1])
		if err != nil {
			return err
		}
		together, err := time.ParseDuration(args[2])
		if err != nil {
			return err
		}
		return attack(each, together, args[3:])
	}
	return fmt.Errorf("usage: program attack EACH ALL [NAME…] | measure | serve NAME…")
}

// attackProgram does its worst until ctx ends, and counts each blow.
type attackProgram struct {
	name    string
	workers int
	strike  func(ctx context.Context, blows *atomic.Int64)
}

func attack(each, together time.Duration, only []string) error {
	bomb()
	chosen := slices.DeleteFunc(slices.Clone(attacks), func(a attackProgram) bool {
		return len(only) > 0 && !slices.Contains(only, a.name)
	})
	if len(chosen) == 0 {
		return fmt.Errorf("no attack is called %q", only)
	}
	for _, a := range chosen {
		round(a.name, each, a)
	}
	round("all", together, chosen...)
	fmt.Println("done")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// firstBlow bounds the wait for an attack that has not struck yet when its time
// is over: the machine may be busy, and an attack that did nothing shows nothing.
const firstBlow = 20 * time.Second

func round(name string, span time.Duration, all ...attackProgram) {
	fmt.Println("begin", name)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var wg sync.WaitGroup
	var blows atomic.Int64
	for _, a := range all {
		for range a.workers {
			wg.Go(func() {
				for ctx.Err() == nil {
					a.strike(ctx, &blows)
					pause(ctx, time.Millisecond)
				}
			})
		}
	}
	pause(ctx, span)
	for late := time.Now().Add(firstBlow); blows.Load() == 0 && time.Now().Before(late); {
		pause(ctx, 50*time.Millisecond)
	}
	cancel()
	wg.Wait()
	fmt.Println("end", name, blows.Load())
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
