package session

import (
	"context"
	"errors"
	"os"
	"syscall"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/terminal"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// relay starts a command with the user's streams and carries them until it
// ends. moved is told of output that passes; nil: nobody.
func relay(ctx context.Context, stdin, stdout, stderr *os.File, cmd sandbox.Command, moved func(), start func(sandbox.Command) (sandbox.Process, error)) (int, error) {
	streams, err := terminal.Plan(stdin, stdout, stderr)
	if err != nil {
		return 0, asExit(vocabulary.ExitRefused, err)
	}
	defer streams.Close()
	cmd.Terminal, cmd.Stdio = streams.Terminal(), streams.Stdio()
	cmd.Rows, cmd.Cols = streams.Size()
	proc, err := start(cmd)
	if err != nil {
		return 0, asExit(vocabulary.ExitBulkheadFailed, err)
	}
	code, err := streams.Run(ctx, proc, terminal.Options{Moved: moved})
	if errors.Is(err, terminal.ErrHungUp) {
		return 128 + int(syscall.SIGHUP), nil
	}
	return code, err
}

// Exec runs a further command in a running session, with the caller's streams.
// It runs in a process of its own beside the session's controller.
func Exec(ctx context.Context, r *Remote, argv []string, stdin, stdout, stderr *os.File) (int, error) {
	code, err := relay(ctx, stdin, stdout, stderr, sandbox.Command{Argv: argv}, nil, func(cmd sandbox.Command) (sandbox.Process, error) {
		return r.Exec(argv, os.Getenv("TERM"), cmd)
	})
	if err != nil {
		return 0, asExit(vocabulary.ExitBulkheadFailed, err)
	}
	return code, nil
}
