package egress

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// A session that connects to very many names has its own last answers only, a
// bounded number of them, and takes none from its neighbour.
func TestAnswersOfOneSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &lossy{}
		g := &guard{resolve: time.Second, host: &hostNets{}}
		g.rules.Store(&rules{resolver: r})
		flooder, neighbour := &answers{}, &answers{}
		ask := func(heard *answers, name string) error {
			_, err := g.ask(t.Context(), heard, mustHost(t, name))
			return err
		}
		if err := ask(neighbour, "kept.example.com"); err != nil {
			t.Fatal(err)
		}
		for i := range 5000 {
			if err := ask(flooder, fmt.Sprintf("n%d.example.com", i)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
		if n := len(flooder.last); n != maxAnswers {
			t.Errorf("%d answers of one session are kept, want %d", n, maxAnswers)
		}
		r.left.Store(1000) // the resolver falls silent
		if err := ask(neighbour, "kept.example.com"); err != nil {
			t.Errorf("the neighbour lost its answer: %v", err)
		}
		if err := ask(flooder, "n4999.example.com"); err != nil {
			t.Errorf("the newest answer is gone: %v", err)
		}
		for _, name := range []string{"n0.example.com", "kept.example.com"} {
			if ask(flooder, name) == nil {
				t.Errorf("%s is answered, though it was pushed out or is another session's", name)
			}
		}
		time.Sleep(staleFor)
		if ask(neighbour, "kept.example.com") == nil {
			t.Error("an answer that is too old serves")
		}
	})
}

func TestAnswersTooLong(t *testing.T) {
	t.Parallel()
	a := &answers{}
	a.remember(mustHost(t, "a.example.com"), make([]netip.Addr, maxAddresses+1))
	if len(a.last) != 0 {
		t.Error("an answer that nobody can use is kept")
	}
}
