package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// acquire locks the database against other processes. The kernel drops the lock
// with the file, also when the process is killed, so the lock file may stay.
func acquire(path string) (_ *os.File, err error) {
	f, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	if err := flock(f); err != nil {
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("locking: %w", err)
		}
		holder, _ := io.ReadAll(io.LimitReader(f, 32))
		if pid := strings.TrimSpace(string(holder)); pid != "" {
			return nil, fmt.Errorf("%w by process %s", ErrLocked, pid)
		}
		return nil, fmt.Errorf("%w by another process", ErrLocked)
	}
	// The number is for the message above only, so it need not be durable.
	if err := f.Truncate(0); err != nil {
		return nil, fmt.Errorf("writing lock file: %w", err)
	}
	if _, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return nil, fmt.Errorf("writing lock file: %w", err)
	}
	return f, nil
}

// lockPatience is how long a lock may be held by somebody who is about to let go.
const lockPatience = time.Second

// flock locks the file. A child that its former holder has forked and that has
// not come to its exec yet holds the lock too, for moments; so it asks for a
// while before it believes that another has the database.
func flock(f *os.File) error {
	for end := time.Now().Add(lockPatience); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(end) {
			return err
		}
	}
}
