package tools

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/atoll-run/atoll/internal/sandbox/gvisor/guest/wire"
)

// startTries is how often a client looks for a daemon, starting one each time.
const startTries = 5

// Client hands the request on in to the daemon, which it starts if there is
// none, and writes the daemon's reply to out.
func Client(in io.Reader, out io.Writer) error {
	var req wire.ToolRequest
	if err := wire.ReadMessage(in, wire.MaxMessage, &req); err != nil {
		return fmt.Errorf("reading the request: %w", err)
	}
	var reply wire.ToolReply
	var err error
	for range startTries {
		reply, err = ask(req)
		if err == nil {
			break
		}
		var broken brokenError
		if errors.As(err, &broken) { // it took the request: whether it runs is for the journal to say
			continue
		}
		if serr := startDaemon(); serr != nil {
			err = serr
			break
		}
	}
	if err != nil {
		reply = wire.ToolReply{Failure: err.Error()}
	}
	return wire.WriteMessage(out, reply)
}

// brokenError: the daemon took the request and went away.
type brokenError struct{ error }

// ask puts a request to the daemon.
func ask(req wire.ToolRequest) (wire.ToolReply, error) {
	var reply wire.ToolReply
	conn, err := net.DialTimeout("unix", socketPath(), requestTime)
	if err != nil {
		return reply, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(requestTime))
	err = wire.WriteMessage(conn, req)
	var word [1]byte
	if err == nil {
		_, err = io.ReadFull(conn, word[:])
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return reply, errors.Join(err, killDaemon()) // it is stopped or stuck
	}
	if err != nil || word[0] != taken {
		return reply, fmt.Errorf("asking the tool daemon: %w", err)
	}
	_ = conn.SetDeadline(time.Time{})
	if err := wire.ReadMessage(conn, wire.MaxMessage, &reply); err != nil {
		return reply, brokenError{fmt.Errorf("waiting for the tool daemon: %w", err)}
	}
	return reply, nil
}

// killDaemon ends a daemon that does not answer.
func killDaemon() error {
	text, err := os.ReadFile(filepath.Join(runDir, "pid"))
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(string(text))
	if err != nil || pid <= 1 {
		return errors.New("the tool daemon does not answer and cannot be found")
	}
	return syscall.Kill(pid, syscall.SIGKILL)
}

// startDaemon starts a daemon and waits until one answers. It runs from the
// read-only mount that process 1 runs from: this program's own file is a
// descriptor of the host, which cannot be checkpointed.
func startDaemon() error {
	cmd := exec.Command(Program)
	cmd.Args = []string{"atoll-guest", "daemon"}
	cmd.Dir, cmd.Env = "/", []string{"GOMAXPROCS=2", "HOME=/"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the tool daemon: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for end := time.Now().Add(requestTime); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		conn, err := net.Dial("unix", socketPath())
		if err == nil {
			return conn.Close()
		}
		select {
		case err := <-ended:
			if err != nil {
				return fmt.Errorf("the tool daemon ended: %w", err)
			}
			ended = nil // another one has the lock and will listen
		default:
		}
	}
	return errors.New("the tool daemon does not answer")
}
