package security

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/quic"
)

// serveQUIC answers, at an address of the internet and until the case ends, what
// comes over QUIC with what it held after a mark.
func serveQUIC(c *attempt, at netip.AddrPort) {
	c.Helper()
	var socket *net.UDPConn
	err := onThread(world.ns, func() (err error) {
		socket, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		c.Fatal(err)
	}
	config := &quic.Config{TLSConfig: &tls.Config{
		Certificates: []tls.Certificate{certificates().good}, NextProtos: []string{"echo"}, MinVersion: tls.VersionTLS13,
	}}
	endpoint, err := quic.NewEndpoint(socket, config)
	if err != nil {
		c.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	c.Cleanup(func() {
		cancel()
		_ = endpoint.Close(ctx) // at once: the context has ended
		_ = socket.Close()
	})
	go func() {
		for {
			conn, err := endpoint.Accept(ctx)
			if err != nil {
				return
			}
			go echoQUIC(ctx, c.s, conn)
		}
	}()
}

func echoQUIC(ctx context.Context, s *stand, conn *quic.Conn) {
	stream, err := conn.AcceptStream(ctx)
	if err != nil {
		return
	}
	stream.SetReadContext(ctx)
	data, err := io.ReadAll(stream)
	if err != nil {
		return
	}
	s.saw("quic %s %q", conn.ConnectionState().ServerName, data)
	if _, err := stream.Write(append([]byte("echo:"), data...)); err == nil {
		_ = stream.Close()
	}
}
