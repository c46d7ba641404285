package main

import (
	"context"
	"io"

	"golang.org/x/net/quic"

	"github.com/atoll-run/atoll/test/security/prober/wire"
)

// overQUIC connects to Address over QUIC, sends Data on a stream, and reads to
// the end.
func overQUIC(r *wire.Request) wire.Reply {
	ctx, cancel := context.WithTimeout(context.Background(), wait(r))
	defer cancel()
	endpoint, err := quic.Listen("udp4", ":0", nil)
	if err != nil {
		return failed(err)
	}
	defer endpoint.Close(ctx)
	conn, err := endpoint.Dial(ctx, "udp4", r.Address, &quic.Config{TLSConfig: clientConfig(r.TLS)})
	if err != nil {
		return failed(err)
	}
	defer conn.Close()
	stream, err := conn.NewStream(ctx)
	if err != nil {
		return failed(err)
	}
	stream.SetReadContext(ctx)
	stream.SetWriteContext(ctx)
	if _, err = stream.Write(r.Data); err == nil {
		stream.CloseWrite()
	}
	reply := wire.Reply{}
	if err == nil {
		reply.Data, err = io.ReadAll(stream)
	}
	if reply.End = ending(err); err != nil {
		reply.Error = err.Error()
	}
	return reply
}
