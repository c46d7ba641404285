package control

import (
	"regexp"
	"slices"
	"sync"
	"testing"
	"time"
)

// TestIDs: the form, and that ids of one process sort by the order they were
// made in, also when the clock stands still or goes back.
func TestIDs(t *testing.T) {
	t.Parallel()
	var g ids
	now := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	form := regexp.MustCompile(`^env_01[0-9A-Za-z]{22}$`)
	var made []string
	for i := range 2000 {
		at := now
		switch i % 4 {
		case 1:
			at = now.Add(-time.Hour)
		case 2:
			at = now.Add(time.Duration(i) * time.Microsecond)
		}
		made = append(made, g.make("env_", at))
		if !form.MatchString(made[i]) {
			t.Fatalf("id %q", made[i])
		}
	}
	if !slices.IsSorted(made) || len(slices.Compact(slices.Clone(made))) != len(made) {
		t.Error("ids are not in order or repeat")
	}
	if late := g.make("env_", now.Add(100*365*24*time.Hour)); late <= made[len(made)-1] {
		t.Errorf("an id of 2126 sorts before one of 2026: %s", late)
	}
}

func TestIDsAtTheSameTime(t *testing.T) {
	t.Parallel()
	var g ids
	var mu sync.Mutex
	seen := map[string]bool{}
	var work sync.WaitGroup
	for range 8 {
		work.Go(func() {
			for range 500 {
				id := g.make("x", time.Now())
				mu.Lock()
				if seen[id] {
					t.Errorf("%s twice", id)
				}
				seen[id] = true
				mu.Unlock()
			}
		})
	}
	work.Wait()
	if len(seen) != 4000 {
		t.Errorf("%d ids", len(seen))
	}
}

// TestRandomBase62: every character comes up, none twice as often as another.
func TestRandomBase62(t *testing.T) {
	t.Parallel()
	b := make([]byte, 62*1000)
	randomBase62(b)
	count := map[byte]int{}
	for _, c := range b {
		count[c]++
	}
	for i := range len(base62) {
		if n := count[base62[i]]; n < 700 || n > 1400 { // mean 1000, deviation 31
			t.Errorf("%c came up %d times", base62[i], n)
		}
	}
	if len(count) != 62 {
		t.Errorf("%d characters", len(count))
	}
}
