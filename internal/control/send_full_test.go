package control_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/control"
)

// deaf is a loop that takes nothing out of any queue.
type deaf struct{}

func (deaf) Wake(control.SessionRecord)          {}
func (deaf) Ended(context.Context, string) error { return nil }

// TestQueueIsFull: a session whose queue is full refuses more until something was
// taken from it, and its neighbour's is its own.
func TestQueueIsFull(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	service := control.New(control.Config{Store: r.store, Templates: r.templates, Runtime: r.sandboxes, Loop: deaf{}})
	send := func(session string, n int) error {
		t.Helper()
		one := `{"type":"user.message","content":[{"type":"text","text":"x"}]}`
		var req api.EventsSend
		if err := api.Decode(fmt.Appendf(nil, `{"events":[%s]}`, strings.Join(slices.Repeat([]string{one}, n), ",")), &req); err != nil {
			t.Fatal(err)
		}
		_, err := service.SendEvents(t.Context(), r.caller, session, req)
		return err
	}
	greedy, neighbour := r.session(), r.session()
	for i := range 10 {
		if err := send(greedy, 100); err != nil {
			t.Fatalf("request %d: %v", i+1, err)
		}
	}
	if err := send(greedy, 1); r.kind(err) != control.RateLimited {
		t.Errorf("one more: %v", err)
	}
	if err := send(neighbour, 100); err != nil {
		t.Errorf("the neighbour: %v", err)
	}
	queue, err := r.store.QueuedEvents(t.Context(), greedy)
	if err != nil || len(queue) != 1000 {
		t.Errorf("%d events wait, %v", len(queue), err)
	}
}
