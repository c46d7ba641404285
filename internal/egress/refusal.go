package egress

import (
	"io"
	"net/http"
	"time"

	"golang.org/x/net/http2"
)

// refusalText is the line that a refused program reads: what was refused, by
// which rule, and whether that is the environment's network policy or what the
// program speaks. name is the canonical name or the address of what was refused.
func refusalText(name string, reason Reason) string {
	what := "access to " + name + " was refused by the network policy of this environment: "
	switch reason {
	case ReasonNameNotAllowed:
		what += "no rule allows this host"
	case ReasonNoMapping:
		what += "addresses are reached by an allowed name only"
	case ReasonStaleMapping:
		what += "the rule that allowed this host is gone"
	case ReasonPortNotAllowed:
		what += "no rule allows this port"
	case ReasonAddressNotPublic:
		what += "the host is at an address that no sandbox reaches"
	case ReasonBlocklisted:
		what += "the operator of this server blocks it"
	case ReasonHostMismatch:
		what += "the connection was made to another host or port than the request names"
	case ReasonHostMissing:
		what = "the request to " + name + " was not passed on, because it names no host"
	case ReasonHTTPMalformed:
		what = "the request to " + name + " was not passed on, because it is not HTTP/1.0 or HTTP/1.1"
	case ReasonProtocolNotAllowed:
		what = "the request to " + name + " was not passed on, because only HTTP/1.1 and WebSocket are, without TLS"
	default:
		what += "see its list of decisions"
	}
	return what + " (" + string(reason) + ")\n"
}

// ofPolicy tells whether a reason is the network policy's, and not about how a
// program speaks.
func (r Reason) ofPolicy() bool {
	switch r {
	case ReasonHostMissing, ReasonHTTPMalformed, ReasonProtocolNotAllowed:
		return false
	}
	return true
}

// deny is the answer to a refused request.
func deny(w http.ResponseWriter, name string, reason Reason) {
	h := w.Header()
	h.Set("Content-Type", "text/plain")
	if reason.ofPolicy() {
		h.Set("X-Deny-Reason", "host_not_allowed")
	} else {
		h.Set("X-Deny-Reason", string(reason))
	}
	h.Set("Cache-Control", "no-store")
	h.Set("Connection", "close")
	w.WriteHeader(http.StatusForbidden)
	_, _ = io.WriteString(w, refusalText(name, reason))
}

// denyHTTP2 answers a client that began with HTTP/2: it would not understand an
// answer in HTTP/1.1. The error code says that HTTP/1.1 is wanted, and clients
// show the text. What the client still sends is read for a moment: closing over
// unread bytes would take the answer with it.
func denyHTTP2(w http.ResponseWriter, text string) {
	hijacker, ok := w.(http.Hijacker)
	if !ok {
		return
	}
	conn, buffered, err := hijacker.Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	framer := http2.NewFramer(conn, nil)
	if framer.WriteSettings() != nil || framer.WriteGoAway(0, http2.ErrCodeHTTP11Required, []byte(text)) != nil {
		return
	}
	if c, ok := conn.(*gateConn); ok && c.CloseWrite() == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(buffered, 64<<10))
	}
}
