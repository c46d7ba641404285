package control

// Unrecorded counts the runs that are kept in memory.
func (b *Builds) Unrecorded() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.runs)
}

// Waiting counts those who wait for a run.
func (b *Builds) Waiting() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, run := range b.runs {
		n += run.waiters
	}
	return n
}

// Known counts the sessions whose sandboxes' states are kept.
func (s *Sandboxes) Known() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.machines)
}
