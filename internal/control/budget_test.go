package control_test

import (
	"sync"
	"testing"

	"github.com/atoll-run/atoll/internal/control"
)

// take takes one unit at a time until it is refused.
func take(b *control.Budget, holder string) (n int64) {
	for b.Take(holder, 1) {
		n++
	}
	return n
}

func TestBudgetLeavesAShareToNewcomers(t *testing.T) {
	t.Parallel()
	b := control.NewBudget(1000)
	for i, want := range []int64{500, 250, 125} {
		if got := take(b, string(rune('a'+i))); got != want {
			t.Errorf("greedy holder %d got %d, want %d", i, got, want)
		}
	}
	if !b.Take("newcomer", 60) {
		t.Error("a newcomer found no share beside three greedy holders")
	}
	if b.Take("a", 1) {
		t.Error("a holder of half got more")
	}
	if !b.Take("", 65) || b.Take("", 1) {
		t.Error("the server itself gets exactly what is left")
	}
}

func TestBudgetOfGreedyHoldersTogether(t *testing.T) {
	t.Parallel()
	b := control.NewBudget(900)
	var a, c int64
	for b.Take("a", 1) {
		a++
		if b.Take("c", 1) {
			c++
		}
	}
	if a < 299 || a > 301 || c < 299 || c > 301 {
		t.Errorf("two greedy holders got %d and %d of 900, want a third each", a, c)
	}
}

func TestBudgetReturnsWhatWasTaken(t *testing.T) {
	t.Parallel()
	b := control.NewBudget(10_000)
	var all sync.WaitGroup
	for _, holder := range []string{"a", "b", "c", ""} {
		for range 4 {
			all.Go(func() {
				for range 1000 {
					if b.Take(holder, 3) {
						b.Give(holder, 3)
					}
				}
			})
		}
	}
	all.Wait()
	if total, used := b.State(); total != 10_000 || used != 0 {
		t.Errorf("state %d, %d after all was returned, want 10000, 0", total, used)
	}
	var none *control.Budget
	if !none.Take("a", 1<<40) {
		t.Error("a nil budget refused")
	}
	none.Give("a", 1<<40)
	if control.NewBudget(-1).Take("", 1) {
		t.Error("an empty budget gave something")
	}
	defer func() {
		if recover() == nil {
			t.Error("returning what was not taken passed unseen")
		}
	}()
	b.Give("a", 1)
}
