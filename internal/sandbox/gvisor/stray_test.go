package gvisor_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/atoll-run/atoll/internal/sandbox"
	"github.com/atoll-run/atoll/internal/sandbox/gvisor"
	"github.com/atoll-run/atoll/internal/sandbox/sandboxtest"
)

// Sandboxes that are made at the same moment must not inherit each other's
// control sockets, or a dead one seems alive while the other lives.
func TestNoSharedSockets(t *testing.T) {
	sandboxtest.NeedRoot(t)
	layer := sandboxtest.Rootfs(t)
	dir := t.TempDir()
	engine, err := gvisor.New(gvisor.Config{Dir: dir, DefaultLimits: smallLimits})
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	ctx := context.Background()
	var wg sync.WaitGroup
	const count = 6
	for i := range count {
		wg.Go(func() {
			if err := engine.Create(ctx, sandbox.Spec{ID: fmt.Sprintf("s%d", i), Layers: []string{layer}}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	defer func() {
		for i := range count {
			if err := engine.Destroy(ctx, fmt.Sprintf("s%d", i)); err != nil {
				t.Error(err)
			}
		}
	}()
	// The same socket in the processes of two sandboxes is a leak. Each line of
	// the table maps a listening path to its inode.
	table, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	owner := map[string]string{} // socket:[inode] → sandbox whose control socket it is
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		if len(f) == 8 && strings.HasSuffix(f[7], ".sock") {
			owner["socket:["+f[6]+"]"] = filepath.Base(filepath.Dir(f[7]))
		}
	}
	checked := 0
	processes, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range processes {
		line, _ := os.ReadFile(path)
		if !strings.HasPrefix(string(line), "runsc-") || !strings.Contains(string(line), dir) {
			continue
		}
		checked++
		links, _ := filepath.Glob(filepath.Dir(path) + "/fd/*")
		for _, link := range links {
			target, _ := os.Readlink(link)
			if id := owner[target]; id != "" && !strings.Contains(string(line), "/"+id) {
				t.Errorf("%s holds the control socket of sandbox %s", link, id)
			}
		}
	}
	if checked < 2*count {
		t.Errorf("looked at %d processes of %d sandboxes", checked, count)
	}
}
