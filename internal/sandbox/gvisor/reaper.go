package gvisor

import (
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	gvlog "gvisor.dev/gvisor/pkg/log"
)

// discardLog is where gVisor's library logs inside the server.
var discardLog gvlog.Emitter = gvlog.GoogleEmitter{Writer: &gvlog.Writer{Next: io.Discard}}

// reaper collects the exit status of gVisor's processes that this server
// started. It waits only for those, by id: other children are not its own.
// Sandboxes of an earlier server are children of the system.
type reaper struct {
	signals chan os.Signal
	done    chan struct{}

	mu   sync.Mutex
	pids map[int]struct{}
}

func newReaper() *reaper {
	r := &reaper{signals: make(chan os.Signal, 1), done: make(chan struct{}), pids: map[int]struct{}{}}
	signal.Notify(r.signals, syscall.SIGCHLD)
	go func() {
		defer close(r.done)
		for range r.signals {
			r.reap()
		}
	}()
	return r
}

func (r *reaper) add(pids ...int) {
	r.mu.Lock()
	for _, pid := range pids {
		if pid > 0 {
			r.pids[pid] = struct{}{}
		}
	}
	r.mu.Unlock()
	r.reap() // it may have ended before it was added
}

func (r *reaper) reap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for pid := range r.pids {
		got, err := syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
		if got == pid || err == syscall.ECHILD {
			delete(r.pids, pid)
		}
	}
}

func (r *reaper) close() {
	signal.Stop(r.signals)
	close(r.signals)
	<-r.done
}
