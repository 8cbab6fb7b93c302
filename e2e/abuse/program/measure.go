//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

const (
	between     = 5 * time.Millisecond // requests of the measured session
	requestTime = 20 * time.Second
)

// measure sends a small request after the other over one connection.
func measure() {
	client := &http.Client{Timeout: requestTime}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	for ctx.Err() == nil {
		start := time.Now()
		if err := ping(client); err != nil {
			fmt.Println("FAIL", err)
		} else {
			fmt.Println("OK", time.Since(start).Microseconds())
		}
		pause(ctx, between)
	}
}

func ping(client *http.Client) error {
	resp, err := client.Get("https://" + quietHost + "/open/ping")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && (resp.StatusCode != http.StatusOK || string(body) != pong) {
		err = fmt.Errorf("%s: %.80q", resp.Status, body)
	}
	return err
}
