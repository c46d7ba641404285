package gvisor_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/atoll-run/atoll/internal/sandbox"
	"github.com/atoll-run/atoll/internal/sandbox/gvisor"
	"github.com/atoll-run/atoll/internal/sandbox/sandboxtest"
)

// callerDir makes this test binary be a server that runs tool calls until it is
// killed: those from the number in its argument on, in order.
const callerDir = "ATOLL_TEST_CALLER_DIR"

// noteCall takes a note that shows how often and in which order a call ran. It
// runs for a moment, so that a kill hits it.
func noteCall(i int) sandbox.ToolCall {
	input, _ := json.Marshal(map[string]string{"command": fmt.Sprintf("echo begin %d >> log; sleep 0.03; echo end %d >> log; echo result %d", i, i, i)})
	return sandbox.ToolCall{ID: fmt.Sprint("sevt_", i), Name: sandbox.ToolBash, Input: input}
}

func beCaller(dir, from string) error {
	engine, err := gvisor.New(gvisor.Config{Dir: dir, DefaultLimits: smallLimits})
	if err != nil {
		return err
	}
	i, err := strconv.Atoi(from)
	if err != nil {
		return err
	}
	for ; ; i++ {
		r, err := engine.RunTool(context.Background(), "one", noteCall(i))
		if err != nil {
			return err
		}
		fmt.Printf("%d %q\n", i, r.Text)
	}
}

// TestCallerKilled kills the server that runs tool calls again and again; each
// next one asks for the call that had no answer. No call may run twice, be left
// out or get another's result.
func TestCallerKilled(t *testing.T) {
	layer := sandboxtest.Rootfs(t)
	dir := t.TempDir()
	engine := open(t, dir)
	ctx := t.Context()
	if err := engine.Create(ctx, sandbox.Spec{ID: "one", Layers: []string{layer}, Dir: "/workspace"}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := engine.Destroy(context.Background(), "one"); err != nil {
			t.Error(err)
		}
	}()
	rounds := 30
	if testing.Short() {
		rounds = 5
	}
	next := 0
	for range rounds {
		next = callUntilKilled(t, dir, next)
	}
	for i := range next + 1 { // the one without an answer, and the last ones once more
		if i < next-20 {
			continue
		}
		if r, err := engine.RunTool(ctx, "one", noteCall(i)); err != nil || r.Text != fmt.Sprintf("result %d\n\n", i) {
			t.Errorf("call %d: %+v %v", i, r, err)
		}
	}
	var want strings.Builder
	for i := range next + 1 {
		fmt.Fprintf(&want, "begin %d\nend %d\n", i, i)
	}
	_, content, err := engine.ReadFile(ctx, "one", "log")
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	var got bytes.Buffer
	if _, err := got.ReadFrom(content); err != nil || got.String() != want.String() {
		t.Errorf("%v; the calls ran so:\n%s", err, got.String())
	}
	t.Logf("%d calls over %d kills", next, rounds)
}

// callUntilKilled lets a server call from a number on and kills it after a
// random time. It gives the number of the first call without an answer.
func callUntilKilled(t *testing.T, dir string, from int) (next int) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", strconv.Itoa(from))
	cmd.Env = append(os.Environ(), callerDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	next = from
	lines := bufio.NewScanner(out)
	answers := rand.IntN(4) // some are killed in their first call
	var timer *time.Timer
	if answers == 0 {
		timer = time.AfterFunc(time.Duration(rand.IntN(400))*time.Millisecond, func() { _ = cmd.Process.Kill() })
	}
	for lines.Scan() {
		if want := fmt.Sprintf("%d %q", next, fmt.Sprintf("result %d\n\n", next)); lines.Text() != want {
			t.Fatalf("the server says %q, not %q", lines.Text(), want)
		}
		if next++; next == from+answers {
			timer = time.AfterFunc(time.Duration(rand.IntN(60))*time.Millisecond, func() { _ = cmd.Process.Kill() })
		}
	}
	if timer == nil {
		t.Fatal("the server ended by itself")
	}
	_ = cmd.Wait()
	return next
}
