package tools

import (
	"context"
	"errors"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/atoll-run/atoll/internal/sandbox/gvisor/guest/wire"
)

// Program is where sandboxes have the guest program.
const Program = "/dev/atoll-guest"

// Where the daemon is in a sandbox. The first directory is in memory and goes
// with the processes; the second is on the sandbox's disk and stays.
const (
	runDir     = "/dev/.atoll"
	journalDir = "/var/lib/atoll/calls"
)

// maxClients bounds the requests that are answered at the same time.
const maxClients = 64

// requestTime is how long a client may take to say what it wants, and the
// daemon to take note of it.
const requestTime = 15 * time.Second

const (
	unknownOutcome = "The outcome of this call is unknown: the sandbox was restarted while it ran. " +
		"It may have run wholly, in part or not at all; look at what is there before running it again."
	forgottenResult = "This call has ended, and its result is no longer kept."
)

// daemon runs the calls of a sandbox.
type daemon struct {
	shell *shell
	slots chan struct{}

	mu      sync.Mutex
	journal *journal
	running map[string]*call
}

// call is one that runs.
type call struct {
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when reply is set
	reply  wire.ToolReply
}

// Daemon serves the sandbox for ever. It returns when another daemon does
// already, or with what hindered it. It belongs in a session of its own, with
// the null device for its standard files.
func Daemon() error {
	outliveSignals()
	syscall.Umask(0o022)
	if err := os.MkdirAll(runDir, 0o700); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(runDir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil // the other one serves
	}
	if err := os.WriteFile(filepath.Join(runDir, "pid"), []byte(strconv.Itoa(os.Getpid())), 0o600); err != nil {
		return err
	}
	_ = os.Remove(socketPath())
	l, err := net.Listen("unix", socketPath())
	if err != nil {
		return err
	}
	return newDaemon(runDir, journalDir).serve(l)
}

// outliveSignals lets signals that would end this process pass without effect.
// They are caught, not ignored: programs inherit what is ignored, and would then
// outlive the signals too.
func outliveSignals() {
	dropped := make(chan os.Signal, 1) // never read: the runtime drops what does not fit
	signal.Notify(dropped, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE)
}

func socketPath() string { return filepath.Join(runDir, "tools.sock") }

func newDaemon(runDir, journalDir string) *daemon {
	return &daemon{shell: newShell(runDir), slots: make(chan struct{}, maxClients), journal: openJournal(journalDir), running: map[string]*call{}}
}

func (d *daemon) serve(l net.Listener) error {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil { // out of descriptors or memory: that may pass
			time.Sleep(100 * time.Millisecond)
			continue
		}
		d.slots <- struct{}{}
		go func() {
			defer func() { <-d.slots }()
			defer conn.Close()
			d.answer(conn)
		}()
	}
}

// answer serves one client: it says at once that it is there, so that a client
// can tell a daemon that works from one that hangs.
func (d *daemon) answer(conn net.Conn) {
	_ = conn.SetDeadline(time.Now().Add(requestTime))
	var req wire.ToolRequest
	if err := wire.ReadMessage(conn, wire.MaxMessage, &req); err != nil {
		return
	}
	if _, err := conn.Write([]byte{taken}); err != nil {
		return
	}
	reply := d.do(req)
	_ = conn.SetDeadline(time.Now().Add(requestTime))
	_ = wire.WriteMessage(conn, reply)
}

// taken is the daemon's word that it has read a request.
const taken = '+'

// do answers one request.
func (d *daemon) do(req wire.ToolRequest) wire.ToolReply {
	if !wire.ValidCallID(req.ID) {
		return wire.ToolReply{Failure: "not a call id"}
	}
	switch req.Op {
	case wire.OpRun:
		return d.run(req)
	case wire.OpCancel:
		return d.cancel(req.ID)
	}
	return wire.ToolReply{Failure: "unknown operation"}
}

// run runs a call, or gives what came of it when it ran before.
func (d *daemon) run(req wire.ToolRequest) wire.ToolReply {
	c, reply, mine := d.enter(req.ID)
	if c == nil {
		return reply
	}
	if mine {
		// A goroutine of its own: the call goes on when the client does not.
		ctx, cancel := context.WithCancelCause(context.Background())
		d.mu.Lock()
		c.cancel = cancel
		d.mu.Unlock()
		go func() {
			defer cancel(nil)
			d.leave(req.ID, c, d.execute(ctx, req))
		}()
	}
	<-c.done
	return c.reply
}

// enter finds the running call, or the result, or makes the call the caller's
// own to run.
func (d *daemon) enter(id string) (c *call, reply wire.ToolReply, mine bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c := d.running[id]; c != nil {
		return c, reply, false
	}
	switch d.journal.state(id) {
	case stateBegun:
		return nil, wire.ToolReply{Text: unknownOutcome, IsError: true}, false
	case stateDone:
		reply, ok := d.journal.result(id)
		if !ok {
			reply = wire.ToolReply{Text: forgottenResult, IsError: true}
		}
		return nil, reply, false
	}
	d.journal.begin(id)
	c = &call{done: make(chan struct{}), cancel: func(error) {}}
	d.running[id] = c
	return c, reply, true
}

// leave keeps the result and then lets all who wait have it.
func (d *daemon) leave(id string, c *call, reply wire.ToolReply) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.journal.finish(id, reply)
	delete(d.running, id)
	c.reply = reply
	close(c.done)
}

// maxText bounds a result; the tools' own limits are below it.
const maxText = 1 << 20

func (d *daemon) execute(ctx context.Context, req wire.ToolRequest) wire.ToolReply {
	var r result
	f := stateless(req.Name)
	switch {
	case req.Name == "bash":
		r = d.shell.run(ctx, req)
	case f != nil:
		r = runStateless(ctx, req, StagingDir, f)
	default:
		r = fail("%.100q: there is no such tool", req.Name)
	}
	return wire.ToolReply{Text: clip(r.text, maxText), IsError: r.isError}
}

// cancel ends a call and waits for its end. One that nobody has heard of is
// taken for ended, so that it never begins.
func (d *daemon) cancel(id string) wire.ToolReply {
	d.mu.Lock()
	c := d.running[id]
	if c == nil {
		defer d.mu.Unlock()
		if d.journal.state(id) != stateNew {
			return wire.ToolReply{}
		}
		d.journal.begin(id)
		d.journal.finish(id, wire.ToolReply{Text: "interrupted before it ran", IsError: true})
		return wire.ToolReply{}
	}
	cancel := c.cancel
	d.mu.Unlock()
	cancel(errInterrupted)
	<-c.done
	return wire.ToolReply{}
}
