package sandboxtest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/atoll-run/atoll/internal/sandbox"
)

func testExec(t *testing.T, s *suite) {
	id := s.create(t, nil)
	got := s.exec(t, id, sandbox.Command{Args: []string{"sh", "-c", "echo out; echo err >&2; pwd"}})
	if diff := cmp.Diff(result{Stdout: "out\n/workspace\n", Stderr: "err\n"}, got); diff != "" {
		t.Error(diff)
	}
	if got := s.exec(t, id, sandbox.Command{Args: []string{"pwd"}, Dir: "/usr"}).Stdout; got != "/usr\n" {
		t.Errorf("working directory %q", got)
	}
	big := s.exec(t, id, sandbox.Command{Args: []string{"head", "-c", "3000000", "/dev/zero"}}).Stdout
	if len(big) != 3000000 {
		t.Errorf("got %d bytes of 3000000", len(big))
	}
	// No output wanted: the program must neither block nor fail.
	process, err := s.engine.Exec(testContext(t), id, sandbox.Command{Args: []string{"head", "-c", "3000000", "/dev/zero"}})
	if err != nil {
		t.Fatal(err)
	}
	if exit, err := process.Wait(testContext(t)); err != nil || exit.Code != 0 {
		t.Errorf("discarded output: %v %v", exit, err)
	}
}

func testStdin(t *testing.T, s *suite) {
	id := s.create(t, nil)
	text := strings.Repeat("0123456789abcde\n", 1<<16)
	if got := s.exec(t, id, sandbox.Command{Args: []string{"cat"}, Stdin: strings.NewReader(text)}).Stdout; got != text {
		t.Errorf("cat returned %d bytes of %d", len(got), len(text))
	}
	if got := s.exec(t, id, sandbox.Command{Args: []string{"wc", "-c"}}).Stdout; strings.TrimSpace(got) != "0" {
		t.Errorf("no stdin: wc says %q", got)
	}
	// A program that does not want its input ends all the same.
	if got := s.exec(t, id, sandbox.Command{Args: []string{"true"}, Stdin: strings.NewReader(text)}); got.Code != 0 {
		t.Errorf("unread input: exit %d", got.Code)
	}
}

func testEnvironment(t *testing.T, s *suite) {
	id := s.create(t, func(spec *sandbox.Spec) { spec.Env = []string{"A=1", "B=1"} })
	cmd := sandbox.Command{Args: []string{"sh", "-c", `echo "$A $B $C $HOME"`}, Env: []string{"B=2", "C=x", "C=3"}}
	if got := s.exec(t, id, cmd).Stdout; got != "1 2 3 /root\n" {
		t.Errorf("environment is %q", got)
	}
	s.sh(t, id, "mkdir -p /opt/mine; printf '#!/bin/sh\necho mine\n' > /opt/mine/tool; chmod 755 /opt/mine/tool")
	cmd = sandbox.Command{Args: []string{"tool"}, Env: []string{"PATH=/opt/mine:/usr/bin:/bin"}}
	if got := s.exec(t, id, cmd).Stdout; got != "mine\n" {
		t.Errorf("PATH of the command is not used: %q", got)
	}
	for _, line := range strings.Split(s.sh(t, id, "env; cat /proc/1/environ | tr '\\0' '\\n'"), "\n") {
		if strings.HasPrefix(line, "ATOLL") {
			t.Errorf("the server's environment is inside: %q", line)
		}
	}
}

func testExitCodes(t *testing.T, s *suite) {
	id := s.create(t, nil)
	for script, want := range map[string]sandbox.Exit{
		"exit 0": {}, "exit 7": {Code: 7}, "exit 255": {Code: 255},
		"kill -KILL $$": {Code: 137, Signal: "SIGKILL"}, "kill -TERM $$": {Code: 143, Signal: "SIGTERM"},
	} {
		if diff := cmp.Diff(want, s.exec(t, id, sandbox.Command{Args: []string{"sh", "-c", script}}).Exit); diff != "" {
			t.Errorf("%s: %s", script, diff)
		}
	}
}

func testNotFound(t *testing.T, s *suite) {
	id := s.create(t, nil)
	ctx := testContext(t)
	for _, program := range []string{"no-such-program", "/no/such/program", "/etc/passwd", "/etc", ""} {
		if _, err := s.engine.Exec(ctx, id, sandbox.Command{Args: []string{program}}); !errors.Is(err, sandbox.ErrCommandNotFound) {
			t.Errorf("%q: %v", program, err)
		}
	}
	if _, err := s.engine.Exec(ctx, id, sandbox.Command{Args: []string{"true"}, Dir: "/no/such/dir"}); !errors.Is(err, sandbox.ErrNoFile) {
		t.Errorf("missing directory: %v", err)
	}
	for _, absent := range []string{"absent", "", "../x", strings.Repeat("a", 65)} {
		if _, err := s.engine.Exec(ctx, absent, sandbox.Command{Args: []string{"true"}}); !errors.Is(err, sandbox.ErrNotFound) {
			t.Errorf("absent sandbox %q: %v", absent, err)
		}
	}
}

func testProcessGroup(t *testing.T, s *suite) {
	id := s.create(t, nil)
	ctx := testContext(t)
	var out buffer
	process, err := s.engine.Exec(ctx, id, sandbox.Command{
		Args: []string{"sh", "-c", "sleep 1000 & sleep 1000 & echo started; wait"}, Stdout: &out,
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the script starts", func() bool { return out.String() == "started\n" })
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if _, err := process.Wait(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait with an ended context: %v", err)
	}
	if err := process.Signal(ctx, int(syscall.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	exit, err := process.Wait(ctx)
	if diff := cmp.Diff(sandbox.Exit{Code: 143, Signal: "SIGTERM"}, exit); err != nil || diff != "" {
		t.Error(err, diff)
	}
	eventually(t, "the whole group is gone", func() bool {
		return s.exec(t, id, sandbox.Command{Args: []string{"sh", "-c", "cat /proc/[0-9]*/comm | grep -c ^sleep"}}).Stdout == "0\n"
	})
	if err := process.Signal(ctx, int(syscall.SIGKILL)); err != nil {
		t.Errorf("signal after the end: %v", err)
	}
	if err := process.Resize(sandbox.WindowSize{Rows: 1, Cols: 1}); err == nil {
		t.Error("resize without a terminal worked")
	}
	// Signals stay in their group: a second program is not hit.
	one, err := s.engine.Exec(ctx, id, sandbox.Command{Args: []string{"sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	two, err := s.engine.Exec(ctx, id, sandbox.Command{Args: []string{"sh", "-c", "read x; exit 5"}, Stdin: neverReader{ctx}})
	if err != nil {
		t.Fatal(err)
	}
	if err := one.Signal(ctx, int(syscall.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	if exit, err := one.Wait(ctx); err != nil || exit.Signal != "SIGKILL" {
		t.Error(exit, err)
	}
	if _, err := two.Wait(short); err == nil {
		t.Error("the second program ended with the first")
	}
	_ = two.Signal(ctx, int(syscall.SIGKILL))
}

// neverReader has nothing to read until its context ends.
type neverReader struct{ ctx context.Context }

func (r neverReader) Read([]byte) (int, error) {
	<-r.ctx.Done()
	return 0, r.ctx.Err()
}

// lineReader hands out what is sent to it.
type lineReader chan string

func (r lineReader) Read(p []byte) (int, error) { return copy(p, <-r), nil }

func testTerminal(t *testing.T, s *suite) {
	id := s.create(t, nil)
	ctx := testContext(t)
	var out buffer
	in := make(lineReader)
	process, err := s.engine.Exec(ctx, id, sandbox.Command{
		Args: []string{"bash", "--norc", "-i"}, Env: []string{"PS1=ready>"}, Stdin: in, Stdout: &out, TTY: &sandbox.WindowSize{Rows: 30, Cols: 90},
	})
	if err != nil {
		t.Fatal(err)
	}
	seen := func(text string) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); !strings.Contains(out.String(), text); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("terminal does not show %q: %q", text, out.String())
			}
		}
	}
	seen("ready>")
	in <- "stty size; test -t 0 -a -t 1 -a -t 2 && echo is-a-$((1))-tty\n"
	seen("30 90")
	seen("is-a-1-tty")
	in <- "trap 'echo changed-$((1))' WINCH\n"
	if err := process.Resize(sandbox.WindowSize{Rows: 40, Cols: 120}); err != nil {
		t.Fatal(err)
	}
	in <- "stty size\n"
	seen("40 120")
	in <- "echo before-$((1)); sleep 1000\n"
	seen("before-1")
	eventually(t, "sleep is in the foreground", func() bool {
		return strings.Contains(s.sh(t, id, "cat /proc/[0-9]*/comm"), "sleep")
	})
	in <- "\x03"
	in <- "echo interrupted-$((1))\n"
	seen("interrupted-1")
	in <- "exit 9\n"
	exit, err := process.Wait(ctx)
	if err != nil || exit.Code != 9 {
		t.Errorf("exit %v %v, output %q", exit, err, out.String())
	}
}

func testBackground(t *testing.T, s *suite) {
	id := s.create(t, nil)
	start := time.Now()
	got := s.exec(t, id, sandbox.Command{Args: []string{"sh", "-c", "(sleep 60; echo late) & echo now"}})
	if got.Stdout != "now\n" || got.Code != 0 {
		t.Errorf("got %+v", got)
	}
	if took := time.Since(start); took > 50*time.Second {
		t.Errorf("waited %v for a background child", took)
	}
	// The child may go on writing: nobody reads it, but it is not killed.
	got = s.exec(t, id, sandbox.Command{Args: []string{"sh", "-c", "(while [ ! -e /tmp/stop ]; do echo noise; done; echo done > /tmp/done) & echo now"}})
	if !strings.Contains(got.Stdout, "now\n") {
		t.Errorf("got %.100q", got.Stdout)
	}
	s.sh(t, id, "touch /tmp/stop; while [ ! -e /tmp/done ]; do sleep 0.01; done")
}

// slowWriter blocks until it is let go.
type slowWriter struct {
	gate chan struct{}
	buffer
}

func (w *slowWriter) Write(p []byte) (int, error) {
	<-w.gate
	return w.buffer.Write(p)
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errors.New("no") }

func testSlowWriter(t *testing.T, s *suite) {
	id := s.create(t, nil)
	ctx := testContext(t)
	slow := &slowWriter{gate: make(chan struct{})}
	process, err := s.engine.Exec(ctx, id, sandbox.Command{
		Args: []string{"sh", "-c", "head -c 50000 /dev/zero; touch /tmp/first; head -c 2000000 /dev/zero; touch /tmp/second"}, Stdout: slow,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.sh(t, id, "while [ ! -e /tmp/first ]; do sleep 0.01; done; sleep 0.3; test ! -e /tmp/second") // held back
	close(slow.gate)
	if exit, err := process.Wait(ctx); err != nil || exit.Code != 0 {
		t.Error(exit, err)
	}
	if n := len(slow.String()); n != 2050000 {
		t.Errorf("got %d bytes of 2050000", n)
	}
	// Output that was there when the program ended arrives, however slow the writer.
	slow = &slowWriter{gate: make(chan struct{})}
	process, err = s.engine.Exec(ctx, id, sandbox.Command{Args: []string{"head", "-c", "60000", "/dev/zero"}, Stdout: slow})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "head ends", func() bool {
		return s.exec(t, id, sandbox.Command{Args: []string{"sh", "-c", "cat /proc/[0-9]*/comm | grep -c ^head"}}).Stdout == "0\n"
	})
	timer := time.AfterFunc(500*time.Millisecond, func() { close(slow.gate) })
	defer timer.Stop()
	if _, err := process.Wait(ctx); err != nil {
		t.Error(err)
	}
	if n := len(slow.String()); n != 60000 {
		t.Errorf("got %d bytes of 60000", n)
	}
	got := s.exec(t, id, sandbox.Command{Args: []string{"sh", "-c", "head -c 2000000 /dev/zero && exit 3"}, Stdout: failingWriter{}})
	if got.Code != 3 {
		t.Errorf("a failing writer ended the program: %+v", got)
	}
}

func testConcurrent(t *testing.T, s *suite) {
	id := s.create(t, nil)
	var all sync.WaitGroup
	for i := range 12 {
		all.Go(func() {
			for j := range 4 {
				text := fmt.Sprintf("%d-%d", i, j)
				got := s.exec(t, id, sandbox.Command{Args: []string{"cat"}, Stdin: strings.NewReader(text)})
				if got.Stdout != text || got.Code != 0 {
					t.Errorf("got %+v, want %q", got, text)
				}
			}
		})
	}
	all.Wait()
}
