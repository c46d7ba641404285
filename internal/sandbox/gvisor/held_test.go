package gvisor_test

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/atoll-run/atoll/internal/sandbox"
	"github.com/atoll-run/atoll/internal/sandbox/gvisor"
	"github.com/atoll-run/atoll/internal/sandbox/sandboxtest"
)

// shares is a gvisor.Descriptors that gives each sandbox the same.
type shares struct {
	share int64

	mu   sync.Mutex
	used map[string]int64 // sandbox id → what it has
}

func (s *shares) Take(id string, n int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used[id]+n > s.share {
		return false
	}
	s.used[id] += n
	return true
}

func (s *shares) Give(id string, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used[id] -= n
}

func (s *shares) of(id string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used[id]
}

// TestHeldOutputs: what holds the outputs of ended commands open costs the host
// a bounded number of descriptors, and commands go on, in the sandbox itself
// and in its neighbour.
func TestHeldOutputs(t *testing.T) {
	layer := sandboxtest.Rootfs(t)
	// The share is more than the 32 commands hold whose outputs may stay open.
	budget := &shares{share: 130, used: map[string]int64{}}
	engine, err := gvisor.New(gvisor.Config{Dir: t.TempDir(), Descriptors: budget})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := engine.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	for _, id := range []string{"greedy", "neighbour"} {
		spec := sandbox.Spec{ID: id, Layers: []string{layer}, Limits: sandbox.Limits{MemoryBytes: 512 << 20, Processes: 200, DiskBytes: 64 << 20}}
		if err := engine.Create(ctx, spec); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := engine.Destroy(context.Background(), id); err != nil {
				t.Error(err)
			}
		})
	}
	run := func(id, script string) (string, error) {
		var out bytes.Buffer
		process, err := engine.Exec(ctx, id, sandbox.Command{Args: []string{"sh", "-c", script}, Stdout: &out})
		if err != nil {
			return "", err
		}
		_, err = process.Wait(ctx)
		return out.String(), err
	}
	if _, err := run("neighbour", "true"); err != nil {
		t.Fatal(err)
	}
	before := countFiles(t)
	var commands sync.WaitGroup
	for range 4 {
		commands.Go(func() {
			for range 20 {
				if out, err := run("greedy", "sleep 1000 & echo now"); err != nil || out != "now\n" {
					t.Errorf("a command beside held outputs: %q %v", out, err)
				}
			}
		})
	}
	commands.Wait()
	eventually(t, "64 outputs are held at most", func() bool { return countFiles(t) <= before+64+8 && budget.of("greedy") <= 32*3+3 })
	// The newest are still read: a child that writes is not hindered.
	if out, err := run("greedy", "(sleep 1; echo late; touch /tmp/written) & echo now"); err != nil || out != "now\n" {
		t.Fatalf("%q %v", out, err)
	}
	if _, err := run("greedy", "while [ ! -e /tmp/written ]; do sleep 0.05; done"); err != nil {
		t.Error(err)
	}
	// Without room for another command it is refused, here alone.
	if !budget.Take("greedy", budget.share-budget.of("greedy")) {
		t.Fatal("the share changed")
	}
	if _, err := run("greedy", "true"); !errors.Is(err, sandbox.ErrTooMany) {
		t.Errorf("a command beyond the share: %v", err)
	}
	if _, err := run("neighbour", "true"); err != nil {
		t.Errorf("the neighbour: %v", err)
	}
}
