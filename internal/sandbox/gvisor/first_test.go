package gvisor_test

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/atoll-run/atoll/internal/sandbox"
	"github.com/atoll-run/atoll/internal/sandbox/gvisor"
	"github.com/atoll-run/atoll/internal/sandbox/sandboxtest"
)

func TestFirst(t *testing.T) {
	root := sandboxtest.Rootfs(t)
	e, err := gvisor.New(gvisor.Config{Dir: t.TempDir(), Debug: true})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	ctx := context.Background()
	for range 5 {
		start := time.Now()
		if err := e.Create(ctx, sandbox.Spec{ID: "one", Layers: []string{root}, Dir: "/workspace", Files: map[string][]byte{"/etc/hosts": []byte("127.0.0.1 localhost\n")}}); err != nil {
			t.Fatal(err)
		}
		t.Log("create", time.Since(start))
		for range 3 {
			start = time.Now()
			var out, errw bytes.Buffer
			p, err := e.Exec(ctx, "one", sandbox.Command{Args: []string{"sh", "-c", "echo hello; pwd; ls -la /tmp; id; cat /sys/fs/cgroup/pids.max; grep MemTotal /proc/meminfo; nproc; cat /proc/self/stat"}, Stdout: &out, Stderr: &errw})
			if err != nil {
				t.Fatal(err)
			}
			exit, err := p.Wait(ctx)
			t.Log(time.Since(start), exit, err, out.String(), errw.String())
		}
		start = time.Now()
		if err := e.Destroy(ctx, "one"); err != nil {
			t.Fatal(err)
		}
		t.Log("destroy", time.Since(start))
	}
}
