// Package lifecycle is the state machine of one session's sandbox: its states,
// the events that move it, who uses it, and when nobody has for long enough.
//
// A [Machine] knows no engine, network or store. Where a state stands for work
// (making a sandbox, waking it, putting it aside, removing it) the machine has
// its owner do that work, one at a time, and the work's outcome is the next
// event. What the owner learns of the world otherwise it reports. A report that
// comes too late, about a status that has passed, changes nothing; work that
// ends with an event that its state does not have is a bug, and panics.
package lifecycle

import "fmt"

// State is what a session's sandbox is in.
type State int

// The states of a sandbox. In those that are called working, the owner's work is
// under way.
const (
	Absent       State = iota // there is none; it is made for the next use
	Starting                  // working: it is being made
	Awake                     // it runs
	GoingToSleep              // working: it is being put aside, with its processes
	Asleep                    // it is put aside, and wakes for the next use
	Waking                    // working: its processes are brought back, or started anew on its files
	Dead                      // its processes have ended and its files are there: it wakes for the next use
	Lost                      // it is gone with its files, and nobody was told yet
	Ending                    // working: its session has ended, and all it had is being removed
)

// States lists every state.
var States = []State{Absent, Starting, Awake, GoingToSleep, Asleep, Waking, Dead, Lost, Ending}

// String is the state's name in words.
func (s State) String() string {
	return name(s, "absent", "starting", "awake", "going to sleep", "asleep", "waking", "dead", "lost", "ending")
}

// Working tells whether the owner's work is under way in the state.
func (s State) Working() bool {
	return s == Starting || s == GoingToSleep || s == Waking || s == Ending
}

// Event is what moves a sandbox from one state to another: a command, or a fact
// about the world.
type Event int

// The events.
const (
	Wanted   Event = iota // command: somebody is to use it
	Idle                  // command: nobody has used it for long enough
	Told                  // command: somebody was told of its loss
	End                   // command: its session has ended
	Runs                  // fact: it runs
	Sleeps                // fact: it is put aside
	Died                  // fact: its processes have ended, its files are there
	Vanished              // fact: it is gone with its files
	Failed                // fact: it could not be made, or be removed where there was none
	Removed               // fact: all it had is removed
)

// Events lists every event.
var Events = []Event{Wanted, Idle, Told, End, Runs, Sleeps, Died, Vanished, Failed, Removed}

// String is the event's name in words.
func (e Event) String() string {
	return name(e, "wanted", "idle", "told", "end", "runs", "sleeps", "died", "vanished", "failed", "removed")
}

// moves are all legal moves; docs/ARCHITECTURE.md draws them. Where work can end
// in the state that it began from, it has failed.
var moves = map[State]map[Event]State{
	// The facts are those that a server finds when it starts.
	Absent:       {Wanted: Starting, End: Ending, Runs: Awake, Sleeps: Asleep, Died: Dead, Vanished: Lost},
	Starting:     {Runs: Awake, Failed: Absent, End: Ending},
	Awake:        {Idle: GoingToSleep, Sleeps: Asleep, Died: Dead, Vanished: Lost, End: Ending},
	GoingToSleep: {Sleeps: Asleep, Runs: Awake, Died: Dead, End: Ending},
	Asleep:       {Wanted: Waking, End: Ending},
	Waking:       {Runs: Awake, Sleeps: Asleep, Died: Dead, Vanished: Lost, End: Ending},
	Dead:         {Wanted: Waking, End: Ending},
	Lost:         {Told: Starting, End: Ending},
	// The facts, but the first, are what a removal that failed has left.
	Ending: {Removed: Absent, Failed: Absent, Runs: Awake, Sleeps: Asleep, Died: Dead, Vanished: Lost},
}

// Next is the state that an event leads to, and whether the move is legal.
func Next(from State, e Event) (to State, legal bool) {
	to, legal = moves[from][e]
	return to, legal
}

// name is the word for i, which is out of range only by a bug.
func name[T ~int](i T, words ...string) string {
	if i < 0 || int(i) >= len(words) {
		return fmt.Sprintf("%T(%d)", i, int(i))
	}
	return words[i]
}
