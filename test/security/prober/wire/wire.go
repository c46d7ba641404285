// Package wire is what the tests and their prober say to each other: one JSON
// object a line, requests on the prober's standard input, replies on its
// standard output, in whatever order the work ends.
package wire

// Request asks the prober for one thing. Op says which; the other fields are of
// use to the operations that name them.
type Request struct {
	ID int    `json:"id"`
	Op string `json:"op"`

	// Talk: use connection Conn, or dial Address on Network; shake hands if TLS
	// is given; send Data; read. Many: the same to each of Addresses. Close:
	// close Conn.
	Conn      int      `json:"conn,omitempty"`
	Network   string   `json:"network,omitempty"`
	Address   string   `json:"address,omitempty"`
	Addresses []string `json:"addresses,omitempty"`
	TLS       *TLS     `json:"tls,omitempty"`
	Data      []byte   `json:"data,omitempty"`
	Chunk     int      `json:"chunk,omitempty"`      // send in pieces of this many bytes
	PauseMS   int      `json:"pause_ms,omitempty"`   // between pieces
	HalfClose bool     `json:"half_close,omitempty"` // end the sending side after Data
	Max       int      `json:"max,omitempty"`        // read this many bytes at most; 0: to the end; -1: nothing
	WaitMS    int      `json:"wait_ms,omitempty"`    // for each step; default 10 s
	Keep      bool     `json:"keep,omitempty"`       // leave the connection open and return its number
	Abort     bool     `json:"abort,omitempty"`      // close with a reset
	Parallel  int      `json:"parallel,omitempty"`   // of Many
	Repeat    int      `json:"repeat,omitempty"`     // Flood: datagrams; Stream: bytes

	// Get: a whole HTTP request by the standard client and the system's resolver.
	URL    string            `json:"url,omitempty"`
	Method string            `json:"method,omitempty"`
	Header map[string]string `json:"header,omitempty"`

	// Frames: send Ethernet frames on eth0, and return what arrives within WaitMS.
	Frames [][]byte `json:"frames,omitempty"`

	// Run: a program, if it is there.
	Args []string `json:"args,omitempty"`
}

// TLS is how to shake hands.
type TLS struct {
	Name     string   `json:"name"`                // server name sent; empty: none
	Roots    []byte   `json:"roots,omitempty"`     // PEM; empty: the server is not verified
	Cert     []byte   `json:"cert,omitempty"`      // PEM of a client certificate and key
	ALPN     []string `json:"alpn,omitempty"`      //
	Min, Max uint16   `json:",omitempty"`          // versions
	Curves   []uint16 `json:"curves,omitempty"`    //
	Resume   bool     `json:"resume,omitempty"`    // shake hands twice, the second time with the ticket of the first
	NoVerify bool     `json:"no_verify,omitempty"` //
}

// Reply says what happened.
type Reply struct {
	ID    int    `json:"id"`
	Conn  int    `json:"conn,omitempty"`
	Data  []byte `json:"data,omitempty"`
	Sent  int64  `json:"sent,omitempty"`
	Got   int64  `json:"got,omitempty"`
	Error string `json:"error,omitempty"` // of the step that failed, in the client's own words
	// End is how the conversation ended, one word: eof, reset, refused,
	// unreachable, timeout, more (Max was reached), alert, error.
	End    string            `json:"end,omitempty"`
	Millis int64             `json:"millis,omitempty"`
	Status int               `json:"status,omitempty"`
	Header map[string]string `json:"header,omitempty"`
	Counts map[string]int    `json:"counts,omitempty"` // of Many and Flood, by outcome
	First  map[string]string `json:"first,omitempty"`  // of Many: an address for each outcome
	Frames [][]byte          `json:"frames,omitempty"`
	Peer   []byte            `json:"peer,omitempty"` // SHA-256 of the server's certificate
	ALPN   string            `json:"alpn,omitempty"`
	Resume bool              `json:"resume,omitempty"`
}
