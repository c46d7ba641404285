package egress

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/netip"
	"os"
	"strings"
	"sync"
)

// The synthetic range. Nothing else in a sandbox's world uses it, and the dial
// guard refuses it as a destination.
const (
	syntheticFirst = 198<<24 | 18<<16 | 1<<8 // 198.18.1.0
	syntheticLast  = 198<<24 | 19<<16 | 255<<8 | 255
)

// refusalAddress is what every name that is not allowed resolves to: the
// client connects, and can be told what was refused instead of "no such host".
func refusalAddress() netip.Addr { return netip.AddrFrom4([4]byte{198, 18, 0, 1}) }

func syntheticAddr(i int) netip.Addr {
	n := uint32(syntheticFirst + i)
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

var (
	errNameLimit = errors.New("too many names")
	errNamesLost = errors.New("table of names is closed")
)

// names is the table between names and synthetic addresses of one session. A
// name keeps its address and an address never means a second name, for the
// session's life and over restarts: the table is a file that only grows, and a
// line is written before the address is given out. It is not synced: if the
// machine dies, so do the programs that hold addresses.
type names struct {
	mu     sync.RWMutex // guards what follows
	file   *os.File     // nil: closed, nothing new is given out
	size   int64
	byHost map[Host]int
	byAddr []Host
	listed int // names put in by list; they do not count against limits
}

const namesHeader = "atoll names 1\n"

// createNames makes a new, empty table.
func createNames(path string) (*names, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err := f.WriteString(namesHeader); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &names{file: f, size: int64(len(namesHeader)), byHost: map[Host]int{}}, nil
}

// openNames loads a table exactly as it was written. Anything else in the file
// is an error: an address that means another name than before would undo every
// check that comes after.
func openNames(path string) (*names, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	n, err := parseNames(data)
	if err != nil {
		return nil, err
	}
	if n.file, err = os.OpenFile(path, os.O_WRONLY, 0); err != nil {
		return nil, err
	}
	n.size = int64(len(data))
	if _, err := n.file.Seek(n.size, io.SeekStart); err != nil {
		return nil, errors.Join(err, n.file.Close())
	}
	return n, nil
}

func nameLine(addr netip.Addr, host Host) string {
	text := addr.String() + " " + host.name
	return fmt.Sprintf("%s %08x\n", text, crc32.ChecksumIEEE([]byte(text)))
}

func parseNames(data []byte) (*names, error) {
	body, ok := bytes.CutPrefix(data, []byte(namesHeader))
	if !ok {
		return nil, errors.New("table of names: unknown header")
	}
	n := &names{byHost: map[Host]int{}}
	for len(body) > 0 {
		line, rest, ok := bytes.Cut(body, []byte("\n"))
		i := len(n.byAddr)
		fields := strings.Split(string(line), " ")
		if !ok || len(fields) != 3 || i > syntheticLast-syntheticFirst {
			return nil, fmt.Errorf("table of names: line %d is damaged", i+2)
		}
		host, err := Canonical(fields[1])
		if err != nil || nameLine(syntheticAddr(i), host) != string(line)+"\n" {
			return nil, fmt.Errorf("table of names: line %d is damaged", i+2)
		}
		if _, twice := n.byHost[host]; twice {
			return nil, fmt.Errorf("table of names: line %d repeats a name", i+2)
		}
		n.byHost[host] = i
		n.byAddr = append(n.byAddr, host)
		body = rest
	}
	return n, nil
}

// list gives addresses to the hosts that a policy names one by one, ahead of
// any question, so that a flood of other names cannot starve them.
func (n *names) list(hosts []Host) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	fresh := make([]Host, 0, len(hosts))
	for _, h := range hosts {
		if _, ok := n.byHost[h]; !ok {
			fresh = append(fresh, h)
		}
	}
	n.listed = len(hosts)
	return n.append(fresh)
}

// address returns the host's address, giving it one if it has none and fewer
// than limit names beside the listed ones have.
func (n *names) address(h Host, limit int) (netip.Addr, error) {
	n.mu.RLock()
	i, ok := n.byHost[h]
	n.mu.RUnlock()
	if ok {
		return syntheticAddr(i), nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if i, ok := n.byHost[h]; ok {
		return syntheticAddr(i), nil
	}
	if len(n.byAddr)-n.listed >= limit {
		return netip.Addr{}, errNameLimit
	}
	if err := n.append([]Host{h}); err != nil {
		return netip.Addr{}, err
	}
	return syntheticAddr(n.byHost[h]), nil
}

// append writes first and remembers second. The caller holds mu; no host is in
// the table yet.
func (n *names) append(hosts []Host) error {
	if n.file == nil {
		return errNamesLost
	}
	if len(n.byAddr)+len(hosts) > syntheticLast-syntheticFirst+1 {
		return errNameLimit
	}
	var b strings.Builder
	for i, h := range hosts {
		b.WriteString(nameLine(syntheticAddr(len(n.byAddr)+i), h))
	}
	if _, err := n.file.WriteString(b.String()); err != nil {
		// A full disk leaves part of a line. Take it back, or close the table:
		// the next line must not follow half a line.
		err = fmt.Errorf("writing table of names: %w", err)
		if _, seek := n.file.Seek(n.size, io.SeekStart); seek != nil || n.file.Truncate(n.size) != nil {
			err = errors.Join(err, n.file.Close())
			n.file = nil
		}
		return err
	}
	n.size += int64(b.Len())
	for _, h := range hosts {
		n.byHost[h] = len(n.byAddr)
		n.byAddr = append(n.byAddr, h)
	}
	return nil
}

// host returns the name that an address stands for.
func (n *names) host(addr netip.Addr) (Host, bool) {
	if !addr.Is4() {
		return Host{}, false
	}
	b := addr.As4()
	i := (int(b[0])<<24 | int(b[1])<<16 | int(b[2])<<8 | int(b[3])) - syntheticFirst
	n.mu.RLock()
	defer n.mu.RUnlock()
	if i < 0 || i >= len(n.byAddr) {
		return Host{}, false
	}
	return n.byAddr[i], true
}

func (n *names) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.file != nil {
		_ = n.file.Close() // nothing is buffered
		n.file = nil
	}
}
