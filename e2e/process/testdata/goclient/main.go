// goclient is an ordinary Go program that knows nothing of Bulkhead:
//
//	goclient get URL    prints the answer's status, protocol and body
//	goclient post URL   sends five pieces, 100 ms apart
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

func main() {
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(what, url string) error {
	client := &http.Client{Timeout: 10 * time.Second}
	var resp *http.Response
	var err error
	if what == "post" {
		r, w := io.Pipe()
		go func() {
			for i := range 5 {
				fmt.Fprintf(w, "tick%d", i)
				time.Sleep(100 * time.Millisecond)
			}
			w.Close()
		}()
		resp, err = client.Post(url, "text/plain", r)
	} else {
		resp, err = client.Get(url)
	}
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	fmt.Printf("%d %s %s\n", resp.StatusCode, resp.Proto, body)
	return err
}
