package durable

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// lockInterval is how often a lock that another has is asked for again. The
// kernel's own waiting cannot be ended with a context.
const lockInterval = 20 * time.Millisecond

// TryLock locks an open file or directory against every other open of it, in
// this process and in others, and reports whether it could. The lock goes with
// the last descriptor of this open: by Close, or when all processes that have
// inherited it have ended.
func TryLock(f *os.File) (bool, error) {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, syscall.EWOULDBLOCK):
			return false, nil
		case !errors.Is(err, syscall.EINTR):
			return false, fmt.Errorf("locking %s: %w", f.Name(), err)
		}
	}
}

// Lock opens the file at a path, made with mode 0600 if it is not there, and
// waits for its lock until ctx ends; then the error is its cause. waiting, if
// not nil, is called once if another has the lock. Closing the file releases
// it. The file may stay where it is: only the lock counts.
func Lock(ctx context.Context, path string, waiting func()) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(lockInterval)
	defer tick.Stop()
	for {
		got, err := TryLock(f)
		if got {
			return f, nil
		}
		if err != nil {
			_ = f.Close()
			return nil, err
		}
		if waiting != nil {
			waiting()
			waiting = nil
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("waiting for %s: %w", path, context.Cause(ctx))
		case <-tick.C:
		}
	}
}
