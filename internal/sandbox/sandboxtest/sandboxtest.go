// Package sandboxtest holds every engine to the contract of package sandbox:
// [Run] is the suite, [Rootfs] a small root file system for it and for tests of
// other packages. The tests start real sandboxes; nothing is faked.
package sandboxtest

import (
	"bytes"
	"context"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/atoll-run/atoll/internal/sandbox"
)

// Engine is what the suite tests: both halves of the contract.
type Engine interface {
	sandbox.Engine
	sandbox.Files
}

// Make opens an engine on a directory of its own and names the layers of a root
// file system, lowest first. It closes the engine when the test ends.
type Make func(t *testing.T) (engine Engine, layers []string)

// Run tests every promise of the contract; that of [sandbox.Checkpointer] for an
// engine that is one.
func Run(t *testing.T, open Make) {
	NeedRoot(t)
	engine, layers := open(t)
	s := &suite{engine: engine, layers: layers}
	for name, test := range map[string]func(*testing.T, *suite){
		"Exec": testExec, "Stdin": testStdin, "Environment": testEnvironment, "ExitCodes": testExitCodes, "NotFound": testNotFound,
		"ProcessGroup": testProcessGroup, "Terminal": testTerminal, "Background": testBackground, "SlowWriter": testSlowWriter,
		"Concurrent": testConcurrent, "Isolation": testIsolation, "Memory": testMemory, "Processes": testProcesses, "Disk": testDisk,
		"Files": testFiles, "HostilePaths": testHostilePaths, "Tar": testTar, "TarHostile": testTarHostile, "TarBack": testTarBack,
		"KernelFiles": testKernelFiles, "Unwatched": testUnwatched,
		"Tree": testTree, "Spec": testSpec, "LifeCycle": testLifeCycle, "Cancelled": testCancelled, "Usage": testUsage,
		"Privileges": testPrivileges, "Signals": testSignals, "LimitsShown": testLimitsShown, "SetID": testSetID, "LoopbackSix": testLoopbackSix,
		"ProcSys": testProcSys, "Hibernate": testHibernate, "Hibernated": testHibernated, "HibernateBusy": testHibernateBusy,
		"Revive": testRevive,
	} {
		t.Run(name, func(t *testing.T) { t.Parallel(); test(t, s) })
	}
	if tools, ok := engine.(sandbox.Tools); ok {
		for name, test := range testsOfTools {
			t.Run(name, func(t *testing.T) { t.Parallel(); test(t, &toolSuite{suite: s, tools: tools}) })
		}
	}
}

// suite is what the tests share.
type suite struct {
	engine Engine
	layers []string
	count  atomic.Int64
}

// deadline bounds one test; it only has to be longer than a slow machine needs.
const deadline = 120 * time.Second

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	t.Cleanup(cancel)
	return ctx
}

// create makes a sandbox that the test's end destroys.
func (s *suite) create(t *testing.T, change func(*sandbox.Spec)) (id string) {
	t.Helper()
	spec := sandbox.Spec{
		ID:     "t" + strings.ReplaceAll(time.Now().Format("150405.000000"), ".", "-") + "_" + string(rune('a'+s.count.Add(1)%26)),
		Layers: s.layers, Dir: "/workspace",
		Limits: sandbox.Limits{MemoryBytes: 512 << 20, CPUs: 2, Processes: 100, DiskBytes: 256 << 20},
	}
	if change != nil {
		change(&spec)
	}
	if err := s.engine.Create(testContext(t), spec); err != nil {
		t.Fatalf("creating sandbox: %v", err)
	}
	t.Cleanup(func() {
		if err := s.engine.Destroy(context.Background(), spec.ID); err != nil {
			t.Errorf("destroying sandbox: %v", err)
		}
	})
	return spec.ID
}

// result is what a command did.
type result struct {
	sandbox.Exit
	Stdout, Stderr string
}

// exec runs a command to its end.
func (s *suite) exec(t *testing.T, id string, cmd sandbox.Command) result {
	t.Helper()
	ctx := testContext(t)
	var stdout, stderr buffer
	if cmd.Stdout == nil {
		cmd.Stdout = &stdout
	}
	cmd.Stderr = &stderr
	process, err := s.engine.Exec(ctx, id, cmd)
	if err != nil {
		t.Fatalf("exec %q: %v", cmd.Args, err)
	}
	exit, err := process.Wait(ctx)
	if err != nil {
		t.Fatalf("wait for %q: %v; output so far %q %q", cmd.Args, err, stdout.String(), stderr.String())
	}
	return result{exit, stdout.String(), stderr.String()}
}

// sh runs a shell script and fails the test if the script fails.
func (s *suite) sh(t *testing.T, id, script string) string {
	t.Helper()
	r := s.exec(t, id, sandbox.Command{Args: []string{"sh", "-ec", script}})
	if r.Code != 0 {
		t.Fatalf("script %q: exit %d, stdout %q, stderr %q", script, r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// write puts a file into a sandbox.
func (s *suite) write(t *testing.T, id, path, content string) {
	t.Helper()
	if err := s.engine.WriteFile(testContext(t), id, path, 0o644, strings.NewReader(content)); err != nil {
		t.Fatalf("writing %s: %v", path, err)
	}
}

// read gets a file out of a sandbox.
func (s *suite) read(t *testing.T, id, path string) (string, error) {
	t.Helper()
	_, r, err := s.engine.ReadFile(testContext(t), id, path)
	if err != nil {
		return "", err
	}
	defer r.Close()
	content, err := io.ReadAll(r)
	return string(content), err
}

// eventually polls until ok or the deadline.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(deadline); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// buffer is a bytes.Buffer that one goroutine may read while another writes.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
