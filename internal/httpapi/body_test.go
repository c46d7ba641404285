package httpapi

import (
	"errors"
	"io"
	"net/http"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// pacedConn is a connection on which a client sends a piece of its body now and
// then. It knows the deadline that the server has set.
type pacedConn struct {
	http.ResponseWriter
	every    time.Duration // between two pieces
	piece    int           // bytes of one
	left     int           // bytes to come
	deadline time.Time
}

// SetReadDeadline implements what http.ResponseController looks for.
func (c *pacedConn) SetReadDeadline(at time.Time) error {
	c.deadline = at
	return nil
}

// Read implements io.Reader.
func (c *pacedConn) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, io.EOF
	}
	if until := time.Until(c.deadline); !c.deadline.IsZero() && until < c.every {
		time.Sleep(until)
		return 0, os.ErrDeadlineExceeded
	}
	time.Sleep(c.every)
	n := min(len(p), c.piece, c.left)
	c.left -= n
	return n, nil
}

// Close implements io.Closer.
func (c *pacedConn) Close() error { return nil }

// TestBodiesThatTrickle: a client is given up that never falls silent for long and
// sends next to nothing; one that sends a KiB a second is waited for to the end,
// and one that falls silent is not.
func TestBodiesThatTrickle(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		conn    pacedConn
		least   time.Duration // how long the client is waited for
		most    time.Duration
		refused bool
	}{
		"a byte each second":          {pacedConn{every: time.Second, piece: 1, left: 1000}, 29 * time.Second, 31 * time.Second, true},
		"half a KiB a second":         {pacedConn{every: time.Second, piece: 512, left: 1 << 20}, 58 * time.Second, 62 * time.Second, true},
		"a KiB a second":              {pacedConn{every: time.Second, piece: 1024, left: 200 << 10}, 200 * time.Second, 200 * time.Second, false},
		"half a minute between two":   {pacedConn{every: 31 * time.Second, piece: 1 << 20, left: 2 << 20}, 30 * time.Second, 30 * time.Second, true},
		"pieces far from each other":  {pacedConn{every: 8 * time.Second, piece: 8 << 10, left: 80 << 10}, 80 * time.Second, 80 * time.Second, false},
		"nothing more after the head": {pacedConn{every: time.Hour, piece: 1, left: 1}, 30 * time.Second, 30 * time.Second, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				conn := test.conn
				body := &patientBody{ReadCloser: &conn, conn: http.NewResponseController(&conn), wait: 30 * time.Second}
				start := time.Now()
				_, err := io.Copy(io.Discard, body)
				if took := time.Since(start); took < test.least || took > test.most || (err != nil) != test.refused || err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("after %v: %v", took, err)
				}
				if body.broken() != test.refused || !conn.deadline.IsZero() {
					t.Errorf("broken %v, the connection's deadline is %v", body.broken(), conn.deadline)
				}
			})
		})
	}
}
