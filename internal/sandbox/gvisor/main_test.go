package gvisor_test

import (
	"os"
	"testing"

	"github.com/atoll-run/atoll/internal/sandbox/gvisor"
)

func TestMain(m *testing.M) {
	gvisor.MaybeRun()
	os.Exit(m.Run())
}
