package httpapi

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/atoll-run/atoll/internal/control"
)

// protocolRefusal is a reply that net/http gives by itself, without a handler:
// the request cannot be read, or asks something of the protocol that the server
// does not do.
type protocolRefusal struct {
	status  int
	message string
}

type protocolKey struct{}

// readProtocolRefusal reads what net/http is about to write by itself.
func readProtocolRefusal(reply []byte) protocolRefusal {
	line, _, _ := strings.Cut(string(reply), "\r\n")
	_, rest, _ := strings.Cut(line, " ")
	code, text, _ := strings.Cut(rest, " ")
	status, err := strconv.Atoi(code)
	if err != nil || status < 400 || status > 599 {
		status = http.StatusBadRequest // net/http writes nothing else
	}
	refusal := protocolRefusal{status: status}
	_, reason, _ := strings.Cut(text, ": ")
	switch {
	case status == http.StatusRequestHeaderFieldsTooLarge:
		refusal.message = fmt.Sprintf("The head of the request is larger than %d bytes", maxHead)
	case status == http.StatusExpectationFailed:
		refusal.message = "expect: Input should be '100-continue'"
	case status == http.StatusNotImplemented:
		refusal.message = "transfer-encoding: Input should be 'chunked'"
	case reason != "":
		refusal.message = "The request is not valid HTTP: " + reason
	default:
		refusal.message = "The request is not valid HTTP"
	}
	return refusal
}

// writeProtocolRefusal answers in the place of net/http. The request is not one
// that was sent: that could not be read, or is not to be answered.
func (s *server) writeProtocolRefusal(w http.ResponseWriter, r *http.Request, refusal protocolRefusal) {
	wire := wireError{refusal.status, "invalid_request_error", "invalid_request"}
	if refusal.status == http.StatusNotImplemented {
		wire = wireError{refusal.status, "api_error", "api_error"}
	}
	if refusal.status >= 500 {
		w.Header().Set("X-Should-Retry", "false") // clients retry such a status unless told that it does not help
	}
	fault := &control.Fault{Message: refusal.message}
	noteOf(r).err = fault
	writeFault(w, r, wire, fault)
}

// replyToProtocol is what a handler of this package answers in the place of
// net/http, whole, as it goes over a connection.
func replyToProtocol(handler http.Handler, c net.Conn, refusal protocolRefusal) []byte {
	ctx := context.WithValue(context.Background(), protocolKey{}, refusal)
	r := (&http.Request{URL: &url.URL{Path: "/"}, Header: http.Header{}, Body: http.NoBody, RemoteAddr: c.RemoteAddr().String()}).WithContext(ctx)
	w := &replyBuffer{header: http.Header{}}
	handler.ServeHTTP(w, r)
	w.header.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	w.header.Set("Connection", "close")
	w.header.Set("Content-Length", strconv.Itoa(w.body.Len()))
	var out bytes.Buffer
	fmt.Fprintf(&out, "HTTP/1.1 %d %s\r\n", w.status, http.StatusText(w.status))
	_ = w.header.Write(&out) // a buffer takes all
	out.WriteString("\r\n")
	out.Write(w.body.Bytes())
	return out.Bytes()
}

// replyBuffer is a ResponseWriter that keeps the reply.
type replyBuffer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

// Header implements http.ResponseWriter.
func (w *replyBuffer) Header() http.Header { return w.header }

// WriteHeader implements http.ResponseWriter.
func (w *replyBuffer) WriteHeader(status int) { w.status = status }

// Write implements http.ResponseWriter.
func (w *replyBuffer) Write(p []byte) (int, error) { return w.body.Write(p) }
