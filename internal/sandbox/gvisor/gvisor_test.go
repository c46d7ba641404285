package gvisor_test

import (
	"testing"

	"github.com/atoll-run/atoll/internal/sandbox"
	"github.com/atoll-run/atoll/internal/sandbox/gvisor"
	"github.com/atoll-run/atoll/internal/sandbox/sandboxtest"
)

func TestContract(t *testing.T) {
	sandboxtest.Run(t, func(t *testing.T) (sandboxtest.Engine, []string) {
		layer := sandboxtest.Rootfs(t)
		return open(t, t.TempDir()), []string{layer}
	})
}

// open opens an engine that the test's end closes.
// smallLimits let many sandboxes be promised their disks on a small machine.
var smallLimits = sandbox.Limits{DiskBytes: 1 << 30}

func open(t testing.TB, dir string) *gvisor.Engine {
	t.Helper()
	engine, err := gvisor.New(gvisor.Config{Dir: dir, DefaultLimits: smallLimits})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := engine.Close(); err != nil {
			t.Error(err)
		}
	})
	return engine
}
