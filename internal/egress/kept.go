package egress

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/atoll-run/atoll/internal/durable"
)

// Records are in memory while a network is served. When it is suspended, or the
// server stops, they go into a file beside the network's table, so that many
// suspended networks cost no memory and a restart that was meant loses nothing.

func (h home) records() string { return filepath.Join(h.path, "records") }

// keepRecords writes the journal down, wholly or not at all.
func (h home) keepRecords(j *journal) error {
	all := j.list(Filter{})
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	for i := len(all) - 1; i >= 0; i-- {
		if err := enc.Encode(all[i]); err != nil {
			return stepError("writing network records", err)
		}
	}
	return stepError("writing network records", durable.WriteFile(h.records(), out.Bytes(), 0o600, durable.Process))
}

// loadRecords reads what keepRecords wrote; there may be nothing.
func (h home) loadRecords() (*journal, error) {
	j := &journal{}
	data, err := os.ReadFile(h.records())
	if errors.Is(err, os.ErrNotExist) {
		return j, nil
	}
	if err != nil {
		return j, stepError("reading network records", err)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	for {
		var r Record
		switch err := dec.Decode(&r); {
		case errors.Is(err, io.EOF):
			return j, nil
		case err != nil:
			return j, stepError("reading network records", err)
		}
		if err := j.restore(r); err != nil {
			return j, stepError("reading network records", err)
		}
	}
}

// restore puts a record back that was made before all that follow.
func (j *journal) restore(r Record) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	var n int64
	if _, err := fmt.Sscanf(r.ID, "egr_%014x", &n); err != nil || n <= j.last {
		return fmt.Errorf("record %q is out of order", r.ID)
	}
	j.last = n
	if r.Verdict == VerdictRefused {
		j.refused = push(j.refused, &r, ringRefused)
	} else {
		j.rest = push(j.rest, &r, ringAll)
	}
	return nil
}

// settle keeps the records of a network that is not served any more.
func (g *Gateway) settle(home home, j *journal) {
	if err := home.keepRecords(j); err != nil {
		g.log.Warn("keeping the decisions of a network", "session_id", home.id, "error", err.Error())
	}
}

// recall is the journal of a network that nobody serves. Records that cannot be
// read are lost; the network is none the worse.
func (g *Gateway) recall(home home) *journal {
	j, err := home.loadRecords()
	if err != nil {
		g.log.Warn("recalling the decisions of a network", "session_id", home.id, "error", err.Error())
	}
	return j
}
