package control

import (
	"crypto/rand"
	"sync"
	"time"
)

// ids makes identifiers: a prefix, "01", nine characters of time in
// microseconds and thirteen random ones (77 bits), in base 62 in ASCII order.
// Those of one process sort strictly by the order they were made in.
type ids struct {
	mu   sync.Mutex
	last int64 // the time in the newest id, under mu
}

const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// make returns a new id, like env_01…
func (g *ids) make(prefix string, now time.Time) string {
	g.mu.Lock()
	us := max(now.UnixMicro(), g.last+1)
	g.last = us
	g.mu.Unlock()
	var body [22]byte
	for i := 8; i >= 0; i-- {
		body[i] = base62[us%62]
		us /= 62
	}
	randomBase62(body[9:])
	return prefix + "01" + string(body[:])
}

// RequestID returns a new id for a request.
func (s *Service) RequestID() string { return s.ids.make("req_", s.now()) }

// randomBase62 fills b with random characters, all equally likely.
func randomBase62(b []byte) {
	var buf [32]byte
	for i := 0; i < len(b); {
		_, _ = rand.Read(buf[:]) // never fails (crypto/rand)
		for _, r := range buf {
			if r < 248 && i < len(b) { // 4 × 62
				b[i] = base62[r%62]
				i++
			}
		}
	}
}
