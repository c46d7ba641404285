package egress

import (
	"fmt"
	"testing"
	"time"
)

// E287: the rings keep their number, and a flood of the one does not push out
// the other.
func TestE287Rings(t *testing.T) {
	t.Parallel()
	j := &journal{}
	now := time.Now()
	for i := range 2000 {
		j.add(Record{Time: now, Host: fmt.Sprintf("a%d.example", i), Verdict: VerdictAllowed, Reason: ReasonOK})
		if i < 600 {
			j.add(Record{Time: now, Host: fmt.Sprintf("r%d.example", i), Verdict: VerdictRefused, Reason: ReasonNameNotAllowed})
		}
	}
	if n := len(j.list(Filter{Verdict: "allowed"})); n != 1000 {
		t.Errorf("%d allowed", n)
	}
	refused := j.list(Filter{Verdict: "refused"})
	if len(refused) != 500 || refused[0].Host != "r599.example" || refused[499].Host != "r100.example" {
		t.Errorf("%d refused, newest %s", len(refused), refused[0].Host)
	}
}

// E288: pages are exact, also while records are added.
func TestE288Pages(t *testing.T) {
	t.Parallel()
	j := &journal{}
	for i := range 25 {
		v := VerdictAllowed
		if i%2 == 0 {
			v = VerdictRefused
		}
		j.add(Record{Time: time.Now(), Host: fmt.Sprintf("h%d.example", i), Verdict: v})
	}
	var seen []string
	for before := ""; ; {
		page := j.list(Filter{Limit: 10, Before: before})
		if len(page) == 0 {
			break
		}
		for _, r := range page {
			seen = append(seen, r.Host)
		}
		before = page[len(page)-1].ID
		j.add(Record{Time: time.Now(), Host: "new.example", Verdict: VerdictAllowed})
	}
	if len(seen) != 25 || seen[0] != "h24.example" || seen[24] != "h0.example" {
		t.Errorf("got %q", seen)
	}
}

// E292, E228: identical refusals within ten seconds are one; ids sort as made
// whatever the clock does.
func TestE292Collapse(t *testing.T) {
	t.Parallel()
	j := &journal{}
	start := time.Now().Round(0)
	r := Record{Time: start, Host: "no.example", Verdict: VerdictRefused, Reason: ReasonNameNotAllowed}
	last := ""
	for i := range 500 {
		r.Time = start.Add(time.Duration(i) * 10 * time.Millisecond)
		if _, fresh := j.add(r); fresh != (i == 0) {
			t.Fatalf("refusal %d: fresh %v", i, fresh)
		}
	}
	for _, step := range []time.Duration{11 * time.Second, -time.Hour, time.Hour} {
		r.Time = start.Add(step)
		kept, fresh := j.add(r)
		if !fresh || kept.ID <= last {
			t.Errorf("after %s: fresh %v, id %s after %s", step, fresh, kept.ID, last)
		}
		last = kept.ID
	}
	all := j.list(Filter{})
	if len(all) != 4 || all[3].Count != 500 {
		t.Errorf("%d records, first counts %d", len(all), all[3].Count)
	}
	other := r
	other.Host = "other.example"
	if _, fresh := j.add(other); !fresh {
		t.Error("another host was counted with the first")
	}
}
