package gvisor

import (
	"slices"
	"sync"
)

// Descriptors shares what the process may open among all sandboxes. Take tells
// whether the holder, a sandbox's id, may have n more; Give returns them. Both
// may be called at the same time from everywhere.
type Descriptors interface {
	Take(holder string, n int64) bool
	Give(holder string, n int64)
}

// plenty is for an engine that nobody gave a budget.
type plenty struct{}

// Take implements Descriptors.
func (plenty) Take(string, int64) bool { return true }

// Give implements Descriptors.
func (plenty) Give(string, int64) {}

// execDescriptors is what a program takes at most: our ends of its input and its
// two outputs, which may outlive it, or of its terminal; the other three ends are
// ours for as long as the start takes.
const execDescriptors = 3

// maxHeldOutputs is how many outputs of ended programs of one sandbox are read
// on because something inside holds them open.
const maxHeldOutputs = 64

// heldOutputs are the outputs of ended programs that something in the sandbox
// holds open: a background child, or whoever was passed the descriptor. They cost
// the host a descriptor each, so that the oldest is closed for a new one: who
// writes to it then gets EPIPE.
type heldOutputs struct {
	mu   sync.Mutex
	open []*output // under mu; the oldest first
}

func (h *heldOutputs) add(o *output) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.open = append(h.open, o)
	if len(h.open) > maxHeldOutputs {
		_ = h.open[0].from.Close() // ends its run, which closes it again
		h.open = slices.Delete(h.open, 0, 1)
	}
}

func (h *heldOutputs) remove(o *output) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if i := slices.Index(h.open, o); i >= 0 {
		h.open = slices.Delete(h.open, i, i+1)
	}
}
