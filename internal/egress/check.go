package egress

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Check makes a network, tries it from the inside, and removes it. The error
// names the step that does not work on this machine: making namespaces, the
// veth pair, the nf_tables rules, the sockets, or the redirection of what a
// sandbox sends.
func (g *Gateway) Check(ctx context.Context) (err error) {
	s, err := g.make()
	if err != nil {
		return err
	}
	defer s.close()
	dir, err := os.MkdirTemp("", "atoll-egress-check-")
	if err != nil {
		return stepError("making a directory", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	policy, err := Compile(Spec{Mode: ModeLimited})
	if err != nil {
		return err
	}
	st, err := home{"check", filepath.Clean(dir)}.begin(Meta{Source: "check"}, policy)
	if err != nil {
		return err
	}
	if err := s.slot.install(st); err != nil {
		return err
	}
	return inNamespace(s.pair.runtime, func() error { return probe(ctx) })
}

// probe asks a resolver and a server that are nowhere, from inside a sandbox's
// namespace: the stub and the gateway have to answer in their place.
func probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	talk := func(network, address, say string, want string) error {
		c, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if err != nil {
			return err
		}
		defer c.Close()
		if deadline, ok := ctx.Deadline(); ok {
			_ = c.SetDeadline(deadline)
		}
		if _, err := io.WriteString(c, say); err != nil {
			return err
		}
		buf := make([]byte, 512)
		n, err := c.Read(buf)
		if err == nil && !strings.Contains(string(buf[:n]), want) {
			err = fmt.Errorf("unexpected answer %q", buf[:n])
		}
		return err
	}
	// One question, A of localhost.
	const localhost = "\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x09localhost\x00\x00\x01\x00\x01"
	if err := talk("udp4", "192.0.2.53:53", localhost, "\x7f\x00\x00\x01"); err != nil {
		return stepError("redirecting DNS to the stub", err)
	}
	if err := talk("udp4", "192.0.2.53:123", "x", ""); !errors.Is(err, unix.ECONNREFUSED) {
		return stepError("refusing UDP at once", cmp.Or(err, errors.New("it was answered")))
	}
	err := talk("tcp4", refusalAddress().String()+":80", "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n", " 403 ")
	return stepError("redirecting TCP to the gateway", err)
}
