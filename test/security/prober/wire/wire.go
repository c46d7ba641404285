// Package wire is what the tests and their prober say to each other: one JSON
// object a line, requests on the prober's standard input, replies on its
// standard output, in whatever order the work ends.
package wire

// Request asks the prober for one thing. Op says which; the other fields are of
// use to the operations that name them.
type Request struct {
	// ID is repeated by the reply.
	ID int `json:"id"`
	// Op is one of the operations that the comments below name, in lower case.
	Op string `json:"op"`

	// Talk: use connection Conn, or dial Address on Network; shake hands if TLS
	// is given; send Data; read. Many: the same to each of Addresses. Close:
	// close Conn.
	Conn int `json:"conn,omitempty"`
	// Network is one of the net package's names or of the prober's own (connect.go); empty means tcp.
	Network string `json:"network,omitempty"`
	// Address is a host or an address with a port.
	Address string `json:"address,omitempty"`
	// Addresses are those of Many.
	Addresses []string `json:"addresses,omitempty"`
	// TLS is nil for a connection without it.
	TLS *TLS `json:"tls,omitempty"`
	// Data is what is sent; empty sends nothing.
	Data      []byte `json:"data,omitempty"`
	Chunk     int    `json:"chunk,omitempty"`      // send in pieces of this many bytes
	PauseMS   int    `json:"pause_ms,omitempty"`   // between pieces
	HalfClose bool   `json:"half_close,omitempty"` // end the sending side after Data
	Max       int    `json:"max,omitempty"`        // read this many bytes at most; 0: to the end; -1: nothing
	WaitMS    int    `json:"wait_ms,omitempty"`    // for each step; default 10 s
	Keep      bool   `json:"keep,omitempty"`       // leave the connection open and return its number
	Abort     bool   `json:"abort,omitempty"`      // close with a reset
	Parallel  int    `json:"parallel,omitempty"`   // of Many
	Repeat    int    `json:"repeat,omitempty"`     // Flood: datagrams; Stream: bytes

	// Get: a whole HTTP request by the standard client and the system's resolver.
	URL string `json:"url,omitempty"`
	// Method is GET if it is empty.
	Method string `json:"method,omitempty"`
	// Header holds one value for each field.
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
	// ID is the request's.
	ID int `json:"id"`
	// Conn is the number of the connection that was kept; 0 for none.
	Conn int `json:"conn,omitempty"`
	// Data is what was read.
	Data []byte `json:"data,omitempty"`
	// Sent counts the bytes or datagrams that were sent.
	Sent int64 `json:"sent,omitempty"`
	// Got counts the bytes or datagrams that came.
	Got   int64  `json:"got,omitempty"`
	Error string `json:"error,omitempty"` // of the step that failed, in the client's own words
	// End is how the conversation ended, one word: eof, reset, refused,
	// unreachable, timeout, more (Max was reached), alert, error.
	End string `json:"end,omitempty"`
	// Millis is how long it took.
	Millis int64 `json:"millis,omitempty"`
	// Status is the HTTP status, of Get.
	Status int `json:"status,omitempty"`
	// Header holds the first value of each field of the HTTP reply.
	Header map[string]string `json:"header,omitempty"`
	Counts map[string]int    `json:"counts,omitempty"` // of Many and Flood, by outcome
	First  map[string]string `json:"first,omitempty"`  // of Many: an address for each outcome
	// Frames are what arrived on eth0.
	Frames [][]byte `json:"frames,omitempty"`
	Peer   []byte   `json:"peer,omitempty"` // SHA-256 of the server's certificate
	// ALPN is the protocol that TLS agreed on; empty for none.
	ALPN string `json:"alpn,omitempty"`
	// Resume: the second handshake resumed the first one's session.
	Resume bool `json:"resume,omitempty"`
}
