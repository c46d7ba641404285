package lifecycle

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
)

// diagram draws the table of moves, each pair of states with the events between
// them, in the order of the lists.
func diagram() string {
	var b strings.Builder
	b.WriteString("stateDiagram-v2\n")
	id := func(s State) string { return strings.ReplaceAll(s.String(), " ", "_") }
	for _, s := range States {
		if id(s) != s.String() {
			fmt.Fprintf(&b, "    %s: %s\n", id(s), s)
		}
	}
	fmt.Fprintf(&b, "    [*] --> %s\n", id(Absent))
	for _, from := range States {
		for _, to := range States {
			var events []string
			for _, e := range Events {
				if next, legal := Next(from, e); legal && next == to {
					events = append(events, e.String())
				}
			}
			if len(events) > 0 {
				fmt.Fprintf(&b, "    %s --> %s: %s\n", id(from), id(to), strings.Join(events, ", "))
			}
		}
	}
	return b.String()
}

// The diagram in the documentation is the table of moves.
func TestDiagram(t *testing.T) {
	t.Parallel()
	const file = "../../../docs/ARCHITECTURE.md"
	page, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if want := "```mermaid\n" + diagram() + "```\n"; !strings.Contains(string(page), want) {
		t.Errorf("%s does not draw the table of moves, which is:\n%s", file, want)
	}
}

// reached brings a machine into a state by the shortest way.
func reached(t *testing.T, state State) *Machine {
	t.Helper()
	m := New(Config{
		Context: t.Context(), Go: func(work func()) { go work() }, Retry: func(error) bool { return true },
		Work: func(ctx context.Context, _, now *Status) (Event, error) { // until the test's end, or Ending
			<-ctx.Done()
			if now.State == Ending {
				return Removed, nil
			}
			return Runs, nil
		},
	})
	way := map[State][]Event{
		Absent: nil, Starting: {Wanted}, Awake: {Runs}, GoingToSleep: {Runs, Idle}, Asleep: {Sleeps},
		Waking: {Sleeps, Wanted}, Dead: {Died}, Lost: {Vanished}, Ending: {End},
	}
	for _, e := range way[state] {
		if !m.Report(m.Now(), e, nil) {
			t.Fatalf("%s is not reached by %s", state, e)
		}
	}
	if got := m.Now().State; got != state {
		t.Fatalf("reached %s, want %s", got, state)
	}
	return m
}

// want is every legal move, once more and by hand: what the table says is compared
// with what the machine does, and both with this.
const want = `
absent:         wanted starting, end ending, runs awake, sleeps asleep, died dead, vanished lost
starting:       end ending, runs awake, failed absent
awake:          idle going to sleep, end ending, sleeps asleep, died dead, vanished lost
going to sleep: end ending, runs awake, sleeps asleep, died dead
asleep:         wanted waking, end ending
waking:         end ending, runs awake, sleeps asleep, died dead, vanished lost
dead:           wanted waking, end ending
lost:           told starting, end ending
ending:         runs awake, sleeps asleep, died dead, vanished lost, failed absent, removed absent
`

// Each event in each state leads where the table says, or is refused and changes
// nothing.
func TestMoves(t *testing.T) {
	t.Parallel()
	expected := map[string]string{} // "state/event" → state
	for line := range strings.Lines(strings.TrimSpace(want)) {
		from, moves, _ := strings.Cut(line, ":")
		for _, move := range strings.Split(moves, ",") {
			event, to, _ := strings.Cut(strings.TrimSpace(move), " ")
			expected[from+"/"+event] = to
		}
	}
	for _, from := range States {
		for _, e := range Events {
			synctest.Test(t, func(t *testing.T) {
				m := reached(t, from)
				before := m.Now()
				moved := m.Report(before, e, nil)
				to, legal := expected[fmt.Sprintf("%s/%s", from, e)]
				switch {
				case moved != legal:
					t.Errorf("%s in %s: moved %t, want %t", e, from, moved, legal)
				case legal && (m.Now().State.String() != to || before.Next() != m.Now()):
					t.Errorf("%s in %s leads to %s, want %s", e, from, m.Now().State, to)
				case !legal && (m.Now() != before || before.Next() != nil):
					t.Errorf("%s in %s is refused and leads to %s", e, from, m.Now().State)
				}
				if legal && m.Report(before, e, nil) {
					t.Errorf("%s in %s moves once more, from a status that has passed", e, from)
				}
			})
		}
	}
	for _, s := range States {
		if _, drawn := moves[s]; !drawn || strings.Contains(s.String(), "(") {
			t.Errorf("%v has no moves or no name", s)
		}
	}
	if len(moves) != len(States) {
		t.Errorf("moves of %d states, %d are listed", len(moves), len(States))
	}
}
