package control

// Unrecorded counts the runs that are kept in memory.
func (b *Builds) Unrecorded() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.runs)
}
