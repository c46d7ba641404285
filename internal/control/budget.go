package control

import "sync"

// Budget shares a fixed amount of something that the whole process has once,
// descriptors or bytes of memory, among holders that are known by a name.
//
// No holder can use it up: a holder gets more only as long as at least as much
// stays free as that holder has then. So one holder gets at most half, two
// greedy ones a third each, and a newcomer always finds a share. The name "" is
// the server itself, to which the rule does not apply.
//
// Its methods may be called at the same time. A nil *Budget refuses nothing.
type Budget struct {
	total int64

	mu     sync.Mutex       // guards what follows
	used   int64            // by all holders together
	shares map[string]int64 // holder → what it has; without those that have nothing
}

// NewBudget makes a budget of total units. Less than nothing is nothing: then
// every request is refused.
func NewBudget(total int64) *Budget {
	return &Budget{total: max(total, 0), shares: map[string]int64{}}
}

// Take gives n units to a holder and tells whether there were so many. Whoever
// was given units returns them with Give.
func (b *Budget) Take(holder string, n int64) bool {
	if b == nil || n <= 0 {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	free := b.total - b.used - n
	if free < 0 || holder != "" && free < b.shares[holder]+n {
		return false
	}
	b.used += n
	b.shares[holder] += n
	return true
}

// Give returns n units that Take gave to the holder.
func (b *Budget) Give(holder string, n int64) {
	if b == nil || n <= 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	left := b.shares[holder] - n
	if left < 0 {
		panic("control: more was returned to a budget than was taken from it")
	}
	b.used -= n
	b.shares[holder] = left
	if left == 0 {
		delete(b.shares, holder)
	}
}

// State returns how many units there are and how many are used.
func (b *Budget) State() (total, used int64) {
	if b == nil {
		return 0, 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.total, b.used
}
