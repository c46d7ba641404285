package egress

import (
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	staleFor   = 10 * time.Minute // how long an answer serves when the resolver is silent
	maxAnswers = 256              // names of one session; the oldest makes room
)

// answers are what the resolver said last, of the names that one session
// connected to. Each session has its own: one that connects to many names cannot
// take away what another would fall back on. A nil *answers keeps nothing.
type answers struct {
	mu   sync.Mutex      // guards last
	last map[Host]answer // at most maxAnswers
}

// answer is one answer of the resolver, in addresses that were not checked.
type answer struct {
	addrs []netip.Addr
	at    time.Time
}

// remember keeps an answer, in the place of the oldest if there are too many.
// One that is too long to be used is not kept.
func (a *answers) remember(host Host, addrs []netip.Addr) {
	if a == nil || len(addrs) > maxAddresses {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.last == nil {
		a.last = map[Host]answer{}
	}
	if _, known := a.last[host]; !known && len(a.last) >= maxAnswers {
		var oldest Host
		for h, kept := range a.last {
			if oldest.IsZero() || kept.at.Before(a.last[oldest].at) {
				oldest = h
			}
		}
		delete(a.last, oldest)
	}
	a.last[host] = answer{slices.Clone(addrs), time.Now()}
}

// stale is the last answer for a host if it is not too old, or nil.
func (a *answers) stale(host Host) []netip.Addr {
	if a == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if last, ok := a.last[host]; ok && time.Since(last.at) < staleFor {
		return last.addrs
	}
	return nil
}
