package gvisor_test

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMainThreadIsKept: no goroutine but the main one runs on the main thread,
// whose namespaces stand for those of the process.
func TestMainThreadIsKept(t *testing.T) {
	t.Parallel()
	var work sync.WaitGroup
	var strayed atomic.Int64
	for range 200 {
		work.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			for range 50 {
				if unix.Gettid() == unix.Getpid() {
					strayed.Add(1)
				}
				runtime.Gosched()
			}
		})
	}
	work.Wait()
	if n := strayed.Load(); n > 0 {
		t.Errorf("%d times another goroutine ran on the main thread", n)
	}
}
