package gvisor_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/atoll-run/atoll/internal/sandbox/gvisor"
)

func TestMain(m *testing.M) {
	gvisor.MaybeRun()
	if dir := os.Getenv(serverDir); dir != "" {
		fmt.Fprintln(os.Stderr, beServer(dir, os.Args[1]))
		os.Exit(1)
	}
	if dir := os.Getenv(callerDir); dir != "" {
		fmt.Fprintln(os.Stderr, beCaller(dir, os.Args[1]))
		os.Exit(1)
	}
	os.Exit(m.Run())
}
