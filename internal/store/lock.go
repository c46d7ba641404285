package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/atoll-run/atoll/internal/durable"
)

// acquire locks the database against other processes. The kernel drops the lock
// with the file, also when the process is killed, so the lock file may stay.
func acquire(path string) (_ *os.File, err error) {
	path += ".lock"
	ctx, cancel := context.WithTimeoutCause(context.Background(), lockPatience, ErrLocked)
	defer cancel()
	f, err := durable.Lock(ctx, path, nil)
	if errors.Is(err, ErrLocked) {
		holder, _ := os.ReadFile(path)
		if pid := strings.TrimSpace(string(holder[:min(len(holder), 32)])); pid != "" {
			return nil, fmt.Errorf("%w by process %s", ErrLocked, pid)
		}
		return nil, fmt.Errorf("%w by another process", ErrLocked)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	// The number is for the message above only, so it need not be durable.
	if err := f.Truncate(0); err != nil {
		return nil, fmt.Errorf("writing lock file: %w", err)
	}
	if _, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return nil, fmt.Errorf("writing lock file: %w", err)
	}
	return f, nil
}

// lockPatience is how long a lock may be held by somebody who is about to let
// go. A child that its former holder has forked and that has not come to its
// exec yet holds the lock too, for moments.
const lockPatience = time.Second
