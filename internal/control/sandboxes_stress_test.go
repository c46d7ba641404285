package control_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/sandbox"
)

// agrees checks what always holds once all have done what they can: no sandbox
// without a session, no network without a sandbox, and no sandbox that runs
// without its network.
func (r *rig) agrees() {
	r.Helper()
	synctest.Wait()
	live := map[string]bool{}
	err := r.store.LiveSessions(r.Context(), func(rec control.SessionRecord) error {
		live[rec.ID] = true
		return nil
	})
	if err != nil {
		r.Fatal(err)
	}
	r.look(func() {
		for id, info := range r.boxes {
			switch {
			case !live[id]:
				r.Errorf("sandbox %s (%s) has no session", id, info.State)
			case !r.networks[id]:
				r.Errorf("sandbox %s (%s) has no network", id, info.State)
			case info.State == sandbox.StateRunning && r.suspended[id]:
				r.Errorf("sandbox %s runs while its network is suspended", id)
			}
		}
		for id := range r.networks {
			if _, there := r.boxes[id]; !there {
				r.Errorf("network %s has no sandbox", id)
			}
		}
	})
}

// observed is the world with commands that take time, in which nothing is put
// aside that is in use, and no two works at one sandbox overlap.
type observed struct {
	*world
	t *testing.T

	mu       sync.Mutex
	commands map[string]int  // sandbox → commands that run in it
	worked   map[string]bool // sandbox → work is under way
}

// works does work at a sandbox that takes a while.
func (o *observed) works(id string, do func() error) error {
	o.mu.Lock()
	if o.worked[id] {
		o.t.Errorf("two works at %s at the same time", id)
	}
	o.worked[id] = true
	o.mu.Unlock()
	time.Sleep(time.Second)
	defer func() {
		o.mu.Lock()
		o.worked[id] = false
		o.mu.Unlock()
	}()
	return do()
}

func (o *observed) Create(ctx context.Context, spec sandbox.Spec) error {
	return o.works(spec.ID, func() error { return o.world.Create(ctx, spec) })
}

func (o *observed) Destroy(ctx context.Context, id string) error {
	return o.works(id, func() error { return o.world.Destroy(ctx, id) })
}

func (o *observed) Checkpoint(ctx context.Context, id string) error {
	o.mu.Lock()
	if n := o.commands[id]; n > 0 {
		o.t.Errorf("%s is put aside under %d commands", id, n)
	}
	o.mu.Unlock()
	return o.works(id, func() error { return o.world.Checkpoint(ctx, id) })
}

func (o *observed) Restore(ctx context.Context, id, netns string) error {
	return o.works(id, func() error { return o.world.Restore(ctx, id, netns) })
}

func (o *observed) Revive(ctx context.Context, id, netns string) error {
	return o.works(id, func() error { return o.world.Revive(ctx, id, netns) })
}

func (o *observed) Exec(ctx context.Context, id string, cmd sandbox.Command) (sandbox.Process, error) {
	if _, err := o.world.Exec(ctx, id, cmd); err != nil {
		return nil, err
	}
	p := running{end: make(chan struct{})}
	o.mu.Lock()
	o.commands[id]++
	o.mu.Unlock()
	time.AfterFunc(time.Duration(len(cmd.Args))*time.Minute, func() {
		o.mu.Lock()
		o.commands[id]--
		o.mu.Unlock()
		close(p.end)
	})
	return p, nil
}

// Whatever users, the clock and the world do at the same time, sandboxes agree
// with sessions, and nothing is left when the sessions end.
func TestSandboxesUnderStress(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			virtual(t, func(r *rig) {
				r.wrap = func(out *outside) {
					out.Engine = &observed{world: r.world, t: r.T, commands: map[string]int{}, worked: map[string]bool{}}
				}
				r.events = make(chan string, 100_000)
				r.open()
				if err := r.sandboxes.Reconcile(r.Context()); err != nil {
					r.Fatal(err)
				}
				sessions := []string{r.session(), r.session(), r.session()}
				for range 6 {
					var all sync.WaitGroup
					for n := range uint64(10) {
						random := rand.New(rand.NewPCG(seed, n))
						all.Go(func() {
							for range 12 {
								time.Sleep(time.Duration(random.IntN(300)) * time.Second)
								r.anything(random, sessions[random.IntN(len(sessions))])
							}
						})
					}
					victim := int(seed) % len(sessions)
					all.Go(func() {
						time.Sleep(10 * time.Minute)
						if _, err := r.service.DeleteSession(r.Context(), r.caller, sessions[victim]); err != nil {
							r.Error(err)
						}
					})
					all.Wait()
					time.Sleep(time.Hour)
					r.agrees()
					sessions[victim] = r.session()
				}
				for _, id := range sessions {
					if _, err := r.service.DeleteSession(r.Context(), r.caller, id); err != nil {
						r.Error(err)
					}
				}
				time.Sleep(time.Hour)
				r.empty()
				if n := r.sandboxes.Known(); n != 0 {
					r.Errorf("the states of %d sandboxes that are gone are kept", n)
				}
			})
		})
	}
}

// anything does one thing that may happen to a session at any time.
func (r *rig) anything(random *rand.Rand, id string) {
	switch random.IntN(12) {
	case 0: // its processes end
		r.look(func() {
			if info, there := r.boxes[id]; there && info.State == sandbox.StateRunning {
				info.State, info.Files = sandbox.StateStopped, true
				r.boxes[id] = info
			}
		})
	case 1: // it is lost with its files
		r.look(func() {
			if info, there := r.boxes[id]; there && info.State != sandbox.StateHibernated {
				info.State, info.Files = sandbox.StateStopped, false
				r.boxes[id] = info
			}
		})
	case 2:
		r.look(func() { r.failNext = sandbox.ErrCapacity })
	case 3:
		r.look(func() { r.restoreErr = append(r.restoreErr, sandbox.ErrCheckpoint, sandbox.ErrCheckpoint) })
	case 4:
		rec, err := r.store.Session(r.Context(), r.caller.Workspace, id)
		if err == nil {
			release := r.sandboxes.Hold(rec)
			time.Sleep(time.Duration(random.IntN(30)) * time.Minute)
			release()
		}
	default:
		p, err := r.sandboxes.Exec(r.Context(), r.caller, id, sandbox.Command{Args: make([]string, 1+random.IntN(20))})
		if _, told := control.AsFault(err); err != nil && !told {
			r.Errorf("a command: %v", err)
		}
		if err == nil && random.IntN(2) == 0 {
			if _, err := p.Wait(r.Context()); err != nil {
				r.Errorf("waiting for a command: %v", err)
			}
		}
	}
}
