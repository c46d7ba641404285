package lifecycle

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// outcome is what the next work of an owner comes to.
type outcome struct {
	event Event
	cause error
	took  time.Duration
}

// owner is the owner of a machine whose work comes to what the test says.
type owner struct {
	*Machine
	mu       sync.Mutex
	outcomes []outcome // of the next works; without one a work succeeds at once
	works    []State   // the working states whose work was done
	under    int       // works under way
	retries  bool      // what Retry answers
}

func newOwner(t *testing.T, idleAfter time.Duration) *owner {
	o := &owner{retries: true}
	o.Machine = New(Config{
		Context: t.Context(), Go: func(work func()) { go work() }, Work: func(ctx context.Context, was, now *Status) (Event, error) { return o.work(t, ctx, now) },
		Retry: func(error) bool { return o.retries }, IdleAfter: idleAfter, OnIdle: func() { o.Sleep() },
	})
	return o
}

func (o *owner) work(t *testing.T, ctx context.Context, now *Status) (Event, error) {
	o.mu.Lock()
	o.works = append(o.works, now.State)
	if o.under++; o.under > 1 {
		t.Error("two works are under way")
	}
	next := outcome{event: map[State]Event{Starting: Runs, Waking: Runs, GoingToSleep: Sleeps, Ending: Removed}[now.State]}
	if len(o.outcomes) > 0 {
		next, o.outcomes = o.outcomes[0], o.outcomes[1:]
	}
	o.mu.Unlock()
	select {
	case <-time.After(next.took):
	case <-ctx.Done():
	}
	o.mu.Lock()
	o.under--
	o.mu.Unlock()
	return next.event, next.cause
}

// comesTo says what the next works come to.
func (o *owner) comesTo(outcomes ...outcome) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.outcomes = outcomes
}

func (o *owner) is(t *testing.T, want State) {
	t.Helper()
	synctest.Wait()
	if got := o.Now().State; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// awaits wants the sandbox until it is awake, and lets it go.
func (o *owner) awaits(t *testing.T) error {
	t.Helper()
	defer o.Hold()()
	_, err := o.Await(t.Context())
	return err
}

var errNo = errors.New("no")

// A sandbox is put aside when nobody has used it for as long as it takes, to the
// instant, and the time begins anew with each use and each refusal.
func TestIdle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOwner(t, time.Minute)
		if err := o.awaits(t); err != nil {
			t.Fatal(err)
		}
		for range 5 { // used again and again, it stays awake
			time.Sleep(time.Minute - 1)
			o.is(t, Awake)
			o.Hold()()
		}
		release := o.Hold()
		other := o.Hold()
		time.Sleep(time.Hour)
		release()
		release() // counts once
		time.Sleep(time.Hour)
		o.is(t, Awake)
		other()
		time.Sleep(time.Minute - 1)
		o.is(t, Awake)
		o.comesTo(outcome{event: Runs}) // refused
		time.Sleep(time.Nanosecond)
		o.is(t, Awake)
		time.Sleep(time.Minute - 1)
		o.is(t, Awake)
		time.Sleep(time.Nanosecond)
		o.is(t, Asleep)
		time.Sleep(time.Hour)
		o.is(t, Asleep)
		if err := o.awaits(t); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Minute)
		o.is(t, Asleep)
	})
}

// With a negative time a sandbox stays awake.
func TestNeverIdle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOwner(t, -1)
		if err := o.awaits(t); err != nil || o.Sleep() != nil {
			t.Error("it sleeps", err)
		}
		time.Sleep(1000 * time.Hour)
		o.is(t, Awake)
	})
}

// Who comes while a sandbox is being put aside has it woken, without another
// word, whether it waits or only holds.
func TestWantedWhileGoingToSleep(t *testing.T) {
	t.Parallel()
	for _, waits := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			o := newOwner(t, time.Minute)
			o.comesTo(outcome{event: Runs}, outcome{event: Sleeps, took: time.Second})
			if err := o.awaits(t); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			o.is(t, GoingToSleep)
			if waits {
				if err := o.awaits(t); err != nil {
					t.Error(err)
				}
			} else {
				release := o.Hold()
				time.Sleep(time.Second)
				defer release()
			}
			o.is(t, Awake)
		})
	}
}

// All who wait share an attempt and its failure; the next has it made again,
// unless its kind is not tried again.
func TestFailures(t *testing.T) {
	t.Parallel()
	for state, begin := range map[State]Event{Absent: Failed, Asleep: Sleeps, Dead: Died} {
		synctest.Test(t, func(t *testing.T) {
			o := newOwner(t, -1)
			if state != Absent {
				o.Report(o.Now(), begin, nil)
			}
			o.comesTo(outcome{event: begin, cause: errNo, took: time.Second}, outcome{event: Runs, took: time.Second})
			var all sync.WaitGroup
			for range 20 {
				all.Go(func() {
					if err := o.awaits(t); !errors.Is(err, errNo) {
						t.Errorf("%s: %v", state, err)
					}
				})
			}
			all.Wait()
			o.is(t, state)
			if o.Now().Failure() != errNo || len(o.works) != 1 {
				t.Errorf("%s: failure %v after %d attempts", state, o.Now().Failure(), len(o.works))
			}
			o.retries = false
			if err := o.awaits(t); err != errNo || len(o.works) != 1 {
				t.Errorf("%s: %v after %d attempts", state, err, len(o.works))
			}
			o.retries = true
			for range 20 {
				all.Go(func() {
					if err := o.awaits(t); err != nil {
						t.Error(err)
					}
				})
			}
			all.Wait()
			if o.is(t, Awake); len(o.works) != 2 || o.Now().Failure() != nil {
				t.Errorf("%s: %d attempts, failure %v", state, len(o.works), o.Now().Failure())
			}
		})
	}
}

// Whoever gives up waiting leaves the attempt to the others.
func TestGivenUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOwner(t, time.Minute)
		o.comesTo(outcome{event: Runs, took: time.Second})
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		release := o.Hold()
		if _, err := o.Await(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		release()
		if err := o.awaits(t); err != nil || !o.Unused() || len(o.works) != 1 {
			t.Errorf("%v, unused %t, %d attempts", err, o.Unused(), len(o.works))
		}
	})
}

// The end of a session ends the work that is under way, waits for it, and tells
// those who wait why. Whoever ends it too shares the outcome.
func TestEnd(t *testing.T) {
	t.Parallel()
	for _, state := range States {
		synctest.Test(t, func(t *testing.T) {
			o := newOwner(t, -1)
			long := outcome{took: time.Hour}
			switch state {
			case Starting:
				long.event = Runs
				o.comesTo(long)
				o.Want()
			case Waking:
				long.event = Runs
				o.comesTo(long)
				o.Report(o.Now(), Sleeps, nil)
				o.Want()
			case GoingToSleep:
				long.event = Sleeps
				o.comesTo(long)
				o.Report(o.Now(), Runs, nil)
				o.Report(o.Now(), Idle, nil)
			case Awake, Asleep, Dead, Lost:
				o.Report(o.Now(), map[State]Event{Awake: Runs, Asleep: Sleeps, Dead: Died, Lost: Vanished}[state], nil)
			case Ending:
				o.comesTo(outcome{event: Removed, took: time.Second})
				go func() { _ = o.End(t.Context(), errNo) }()
			}
			o.is(t, state)
			before := o.Now()
			var all sync.WaitGroup
			if state == Starting || state == Waking || state == GoingToSleep {
				all.Go(func() {
					if err := o.awaits(t); err != errNo {
						t.Errorf("while %s: waited for %v", state, err)
					}
				})
				synctest.Wait()
			}
			began := time.Now()
			for range 3 {
				all.Go(func() {
					if err := o.End(t.Context(), errNo); err != nil {
						t.Errorf("while %s: %v", state, err)
					}
				})
			}
			all.Wait()
			o.is(t, Absent)
			if took := time.Since(began); took > time.Second {
				t.Errorf("while %s: it took %s", state, took)
			}
			if o.Now().Cause != errNo || o.Now().Failure() != nil || before.Next() == nil {
				t.Errorf("after %s: %+v", state, o.Now())
			}
		})
	}
}

// A removal that fails leaves what is left, and can be repeated.
func TestEndFails(t *testing.T) {
	t.Parallel()
	for event, left := range map[Event]State{Failed: Absent, Runs: Awake, Sleeps: Asleep, Died: Dead, Vanished: Lost} {
		synctest.Test(t, func(t *testing.T) {
			o := newOwner(t, -1)
			o.comesTo(outcome{event: event, cause: errNo})
			if err := o.End(t.Context(), errors.New("over")); err != errNo {
				t.Errorf("%s: %v", event, err)
			}
			o.is(t, left)
			if err := o.End(t.Context(), errors.New("over")); err != nil {
				t.Errorf("%s: %v", event, err)
			}
			o.is(t, Absent)
		})
	}
}

// A report about a status that has passed changes nothing, although the same state
// holds again; nor does work that was ended.
func TestLateReports(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOwner(t, -1)
		o.Report(o.Now(), Runs, nil)
		before := o.Now()
		o.Report(before, Died, errNo)
		if next := before.Next(); next.State != Dead || next.Cause != errNo || next.Failure() != nil {
			t.Errorf("followed by %+v", next)
		}
		if err := o.awaits(t); err != nil {
			t.Error(err)
		}
		if o.Report(before, Died, errNo) || o.Report(before, Vanished, errNo) {
			t.Error("a late report was taken")
		}
		o.is(t, Awake)
		// What the ended work comes to is not a move of what follows.
		o.Report(o.Now(), Sleeps, nil)
		o.comesTo(outcome{event: Vanished, took: time.Hour}, outcome{event: Removed, took: time.Second})
		o.Want()
		o.is(t, Waking)
		if err := o.End(t.Context(), errNo); err != nil {
			t.Error(err)
		}
		o.is(t, Absent)
	})
}

// Work that ends with an event that its state does not have is a bug.
func TestImpossibleOutcome(t *testing.T) {
	t.Parallel()
	var said any
	done := make(chan struct{})
	m := New(Config{
		Context: t.Context(), Retry: func(error) bool { return true },
		Work: func(context.Context, *Status, *Status) (Event, error) { return Told, nil },
		Go: func(work func()) {
			go func() {
				defer close(done)
				defer func() { said = recover() }()
				work()
			}()
		},
	})
	m.Want()
	if <-done; said == nil {
		t.Error("a sandbox that was told while it started passed unseen")
	}
}

// Whatever many do at the same time, one work is under way at most, nobody is
// awake who was put aside, and in the end it is removed.
func TestStress(t *testing.T) {
	t.Parallel()
	for seed := range uint64(40) {
		synctest.Test(t, func(t *testing.T) {
			o := newOwner(t, 3*time.Second)
			random := rand.New(rand.NewPCG(seed, 1))
			o.cfg.Work = func(ctx context.Context, _, now *Status) (Event, error) { // it may take time, and fail as it can
				may := map[State][]outcome{
					Starting:     {{Runs, nil, 0}, {Runs, nil, 0}, {Failed, errNo, 0}},
					Waking:       {{Runs, nil, 0}, {Runs, nil, 0}, {Sleeps, errNo, 0}, {Died, errNo, 0}, {Vanished, errNo, 0}},
					GoingToSleep: {{Sleeps, nil, 0}, {Sleeps, nil, 0}, {Runs, nil, 0}, {Died, nil, 0}},
					Ending:       {{Removed, nil, 0}, {Removed, nil, 0}, {Runs, errNo, 0}, {Vanished, errNo, 0}},
				}[now.State]
				next := may[random.IntN(len(may))]
				next.took = time.Duration(random.IntN(3)) * time.Second
				o.comesTo(next)
				return o.work(t, ctx, now)
			}
			var all sync.WaitGroup
			for n := range uint64(12) {
				random := rand.New(rand.NewPCG(seed, 2+n))
				all.Go(func() {
					for range 50 {
						time.Sleep(time.Duration(random.IntN(8)) * time.Second)
						o.once(t, random)
					}
				})
			}
			all.Wait()
			for o.End(t.Context(), errNo) != nil {
				continue
			}
			if o.is(t, Absent); !o.Unused() {
				t.Error("somebody uses it still")
			}
		})
	}
}

// once does one thing that may happen at any time.
func (o *owner) once(t *testing.T, random *rand.Rand) {
	switch random.IntN(10) {
	case 0:
		_ = o.End(t.Context(), errNo) // fails or not
	case 1: // the world takes it
		fact := []Event{Died, Vanished, Sleeps}[random.IntN(3)]
		if now := o.Now(); now.State == Awake {
			o.Report(now, fact, errNo)
		}
	default:
		release := o.Hold()
		defer release()
		st, err := o.Await(t.Context())
		switch {
		case st.State == Lost:
			o.Report(st, Told, nil)
		case err != nil:
			if err != errNo {
				t.Error(err)
			}
		default:
			time.Sleep(time.Duration(random.IntN(10)) * time.Second)
			if next := st.Next(); next != nil && next.State == GoingToSleep {
				t.Error("it was put aside while it was used")
			}
		}
	}
}
