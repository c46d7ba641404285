package main

import (
	"net"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/atoll-run/atoll/test/security/prober/wire"
)

// ownNamespace makes a network namespace and tries to reach the gateway from
// it. The thread that does so is never used again.
func ownNamespace() error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Connect(fd, &unix.SockaddrInet4{Port: 80, Addr: [4]byte{169, 254, 100, 1}})
}

// connectFlags connects by hand in ways that the standard client does not: an
// IPv6 socket to an IPv4 address ("mapped"), data in the SYN ("fastopen"), a
// datagram by way of a broadcast socket ("broadcast"), an ICMP socket ("ping"),
// a raw socket of protocol Max ("raw"). "listen" waits for somebody who connects.
func connectFlags(r *wire.Request) wire.Reply {
	to, err := netip.ParseAddrPort(r.Address)
	if err != nil {
		return failed(err)
	}
	domain, kind, protocol := unix.AF_INET, unix.SOCK_STREAM, 0
	switch r.Network {
	case "mapped":
		domain = unix.AF_INET6
	case "broadcast":
		kind = unix.SOCK_DGRAM
	case "ping":
		kind, protocol = unix.SOCK_DGRAM, unix.IPPROTO_ICMP
	case "raw":
		kind, protocol = unix.SOCK_RAW, r.Max
	}
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return failed(err)
	}
	defer unix.Close(fd)
	tv := unix.NsecToTimeval(int64(wait(r)))
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv)
	if r.Network == "broadcast" {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
	}
	if r.Network == "listen" {
		return listen(r)
	}
	var at unix.Sockaddr = &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	if domain == unix.AF_INET6 {
		at = &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	}
	switch r.Network {
	case "fastopen":
		err = unix.Sendto(fd, r.Data, unix.MSG_FASTOPEN, at)
	case "raw":
		err = unix.Sendto(fd, r.Data, 0, at)
	default:
		if err = unix.Connect(fd, at); err == nil {
			_, err = unix.Write(fd, r.Data)
		}
	}
	if err != nil {
		return failed(err)
	}
	reply := wire.Reply{}
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EAGAIN {
			reply.End = "timeout"
			return reply
		}
		if err != nil {
			reply.Error, reply.End = err.Error(), ending(err)
			return reply
		}
		reply.Data = append(reply.Data, buf[:n]...)
		if n == 0 || kind != unix.SOCK_STREAM {
			reply.End = "eof"
			return reply
		}
	}
}

// listen waits for one connection.
func listen(r *wire.Request) wire.Reply {
	l, err := net.Listen("tcp4", r.Address)
	if err != nil {
		return failed(err)
	}
	defer l.Close()
	_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(wait(r)))
	c, err := l.Accept()
	if err != nil {
		return failed(err)
	}
	defer c.Close()
	return wire.Reply{Data: []byte(c.RemoteAddr().String()), End: "eof"}
}
