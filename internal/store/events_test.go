package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atoll-run/atoll/internal/control"
)

// seedSession makes an environment and a session in workspace w.
func seedSession(t testing.TB, s *Store, id string) {
	t.Helper()
	env := record(0)
	if err := s.CreateEnvironment(t.Context(), env); err != nil && !errors.Is(err, control.ErrDuplicate) {
		t.Fatal(err)
	}
	err := s.CreateSession(t.Context(), control.SessionRecord{ID: id, Workspace: "w", Environment: env.ID, Agent: "a", AgentVersion: 1,
		Status: "idle", Document: []byte(`{}`), CreatedAt: time.Now(), UpdatedAt: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
}

// step is one event for the log and one for the queue, which takes the one of the
// step before out of it.
func step(session string, n int) func(control.LogState) (control.LogChange, error) {
	e := func(kind string, n int) control.EventRecord {
		return control.EventRecord{ID: fmt.Sprintf("%s-%s-%d", session, kind, n), Type: kind, CreatedAt: time.Now(), ProcessedAt: time.Now(),
			Fields: []byte(`{"content":[{"type":"text","text":"` + strings.Repeat("x", 400) + `"}]}`)}
	}
	return func(control.LogState) (control.LogChange, error) {
		change := control.LogChange{Log: []control.EventRecord{e("log", n)}, Queue: []control.EventRecord{e("queue", n)}}
		if n > 0 {
			change.Log = append(change.Log, e("queue", n-1))
		}
		return change, nil
	}
}

// whole checks that a session's log and queue are those of so many steps, or of
// one more that was not acknowledged.
func whole(t *testing.T, s *Store, session string, steps int) {
	t.Helper()
	log, _, err := s.Events(t.Context(), session, control.EventFilter{}, control.EventPage{Limit: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	waiting, err := s.QueuedEvents(t.Context(), session)
	if err != nil {
		t.Fatal(err)
	}
	if len(log)%2 == 0 && len(log) > 0 || len(log) < 2*steps-1 || len(log) > 2*steps+1 {
		t.Fatalf("%s: %d events in the log after %d steps", session, len(log), steps)
	}
	if made := (len(log) + 1) / 2; made > 0 && (len(waiting) != 1 || waiting[0].ID != fmt.Sprintf("%s-queue-%d", session, made-1)) {
		t.Fatalf("%s: the queue after %d steps: %v", session, made, waiting)
	}
	for i, e := range log {
		if e.Seq != int64(i+1) || i > 0 && !e.ProcessedAt.After(log[i-1].ProcessedAt) {
			t.Fatalf("%s: event %d is %+v", session, i, e)
		}
	}
}

func TestFailingCommitOfALog(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir()+"/db")
	seedWorkspace(t, s)
	seedSession(t, s, "sesn_1")
	broken := errors.New("broken disk")
	failing := false
	s.writes.failCommit = func() error {
		if failing {
			return broken
		}
		return nil
	}
	for n, done := 0, 0; done < 20; n++ {
		failing = n%3 == 2
		_, err := s.ChangeLog(t.Context(), "w", "sesn_1", step("sesn_1", done))
		if failing != errors.Is(err, broken) || !failing && err != nil {
			t.Fatalf("try %d: %v", n, err)
		}
		if !failing {
			done++
		}
		whole(t, s, "sesn_1", done)
	}
}

// TestKilledWhileAppending: what was acknowledged is there after a kill, and no
// step is there by half.
func TestKilledWhileAppending(t *testing.T) {
	t.Parallel()
	path := t.TempDir() + "/db"
	s := open(t, path)
	seedWorkspace(t, s)
	const sessions = 4
	for i := range sessions {
		seedSession(t, s, fmt.Sprint("sesn_", i))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	steps := make([]int, sessions)
	for range 3 {
		cmd := child(t, path, 0)
		cmd.Env = append(cmd.Env, childSteps+"="+strings.Trim(fmt.Sprint(steps), "[]"))
		acked := follow(t, cmd, 300)
		for _, line := range acked {
			var session, n int
			if _, err := fmt.Sscan(line, &session, &n); err != nil {
				t.Fatalf("child: %s", line)
			}
			steps[session] = max(steps[session], n+1)
		}
		s := open(t, path)
		for i := range sessions {
			id := fmt.Sprint("sesn_", i)
			whole(t, s, id, steps[i])
			last, err := s.LastEvent(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			steps[i] = int(last+1) / 2 // the one that was not acknowledged may be there
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("steps: %v", steps)
}

// appendForever makes steps in several sessions, from where each is, and prints
// session and number of each after it was acknowledged.
func appendForever(s *Store, steps string) {
	var out sync.Mutex
	for i, text := range strings.Fields(steps) {
		var first int
		if _, err := fmt.Sscan(text, &first); err != nil {
			fmt.Println("steps:", err)
			os.Exit(3)
		}
		go func() {
			id := fmt.Sprint("sesn_", i)
			for n := first; ; n++ {
				_, err := s.ChangeLog(context.Background(), "w", id, step(id, n))
				out.Lock()
				if err != nil {
					fmt.Println("step:", err)
				} else {
					fmt.Println(i, n)
				}
				out.Unlock()
			}
		}()
	}
	select {}
}
