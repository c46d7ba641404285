package httpapi

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/atoll-run/atoll/internal/control"
)

const (
	// adminBodyWait is how long a command of the operator's may take to send a
	// body, and maxAdminBody how large that may be, in bytes.
	adminBodyWait = 10 * time.Second
	maxAdminBody  = 64 << 10
)

// wholeBodies reads the body of each request before it is served: a body that
// does not come holds no connection, and what is served may take its time.
func wholeBodies(next http.Handler, wait time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body == nil || r.Body == http.NoBody {
			next.ServeHTTP(w, r)
			return
		}
		conn := http.NewResponseController(w)
		_ = conn.SetReadDeadline(time.Now().Add(wait)) // a connection without deadlines does not block for ever
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxAdminBody))
		if err != nil {
			// What is still to come is not waited for: the deadline stays, and with it
			// the connection ends.
			w.Header().Set("Connection", "close")
			adminReply(w, func() (any, error) {
				var large *http.MaxBytesError
				if errors.As(err, &large) {
					return nil, control.Faultf(control.Invalid, "the request's body is larger than %d bytes", maxAdminBody)
				}
				return nil, control.Faultf(control.Invalid, "reading the request: %v", err)
			})
			return
		}
		_ = conn.SetReadDeadline(time.Time{}) // as above; the server reads on, to see whether the client leaves
		r.Body = io.NopCloser(bytes.NewReader(body))
		next.ServeHTTP(w, r)
	})
}
