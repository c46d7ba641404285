package main

import (
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
)

// tmpMark keeps gVisor from mounting a memory file system over an empty /tmp:
// the server makes it before the start, the first process removes it.
const tmpMark = "/tmp/.atoll-start"

// initLoop is the life of process 1: reap what was left to it. It never ends;
// signals other than SIGKILL from outside do not stop it.
func initLoop() {
	_ = os.Remove(tmpMark)
	debug.SetGCPercent(-1) // it allocates nothing from here on
	ended := make(chan os.Signal, 1)
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE)
	signal.Notify(ended, syscall.SIGCHLD)
	for range ended {
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if err == syscall.EINTR {
				continue
			}
			if pid <= 0 || err != nil {
				break
			}
		}
	}
}

// quiesce kills every other process and writes all files back to the host, so
// that the private directory is complete.
func quiesce() {
	for range 3 { // a process may have forked while the first round ran
		_ = syscall.Kill(-1, syscall.SIGKILL)
	}
	syscall.Sync()
}
