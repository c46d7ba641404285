package egress

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Broken returns on whose behalf the networks are that something outside of this
// server has taken apart since it was called last, each once: their link is gone
// or down. Nothing passes in or out of such a network, and nothing mends it; one
// that is suspended and resumed is a new one.
func (g *Gateway) Broken() []Meta {
	g.mu.Lock()
	slots := make([]*slot, 0, len(g.slots))
	for _, s := range g.slots {
		slots = append(slots, s)
	}
	g.mu.Unlock()
	var out []Meta
	for _, s := range slots {
		if err := s.whole(); err != nil && !s.told.Swap(true) {
			st := s.state.Load()
			g.log.Error("a network was taken apart from outside: it stays closed", "session_id", st.id, "error", err.Error())
			out = append(out, st.meta)
		}
	}
	return out
}

// whole tells what is wrong with the slot's link. The slot's sockets are asked,
// which are where it is; if they are closed, nothing is wrong.
func (s *slot) whole() error {
	raw, err := s.udp.SyscallConn()
	if err != nil {
		return nil
	}
	link, err := unix.NewIfreq(gatewayLink)
	if err != nil {
		return err
	}
	var asked error
	if err := raw.Control(func(fd uintptr) { asked = unix.IoctlIfreq(int(fd), unix.SIOCGIFFLAGS, link) }); err != nil {
		return nil
	}
	switch {
	case asked != nil:
		return fmt.Errorf("looking at link %s: %w", gatewayLink, asked)
	case link.Uint16()&unix.IFF_UP == 0:
		return fmt.Errorf("link %s is down", gatewayLink)
	}
	return nil
}
