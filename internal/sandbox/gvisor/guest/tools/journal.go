package tools

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/atoll-run/atoll/internal/sandbox/gvisor/guest/wire"
)

const (
	journalCalls   = 1024 // calls that are remembered
	journalResults = 64   // results that are kept with them
	slotSize       = 160
	inMemory       = 8 << 20 // bytes of results that could not be written
)

// The states of a call.
const (
	stateNew   = ' ' // never heard of
	stateBegun = 'b'
	stateDone  = 'd'
)

// journal remembers the calls of a sandbox on its disk: which began, which
// ended, and what came of the last ones. The index has its final size from the
// start and is written in place, so that a full disk does not stop it; what
// cannot be written is kept in memory. It belongs to one goroutine at a time.
//
// Without a disk at all it remembers for as long as the daemon lives.
type journal struct {
	dir     string
	index   *os.File // nil when it could not be made
	slots   map[string]int
	calls   [journalCalls]entry
	next    int
	results map[string]wire.ToolReply // those that are not on disk
	held    int                       // bytes in results
}

type entry struct {
	id    string
	state byte
}

// openJournal reads what an earlier daemon wrote. Calls it left begun stay so:
// nobody knows what came of them.
func openJournal(dir string) *journal {
	j := &journal{dir: dir, slots: map[string]int{}, results: map[string]wire.ToolReply{}}
	for i := range j.calls {
		j.calls[i].state = stateNew
	}
	j.open()
	return j
}

func (j *journal) open() {
	if err := os.MkdirAll(j.dir, 0o700); err != nil {
		return
	}
	f, err := os.OpenFile(filepath.Join(j.dir, "index"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	data := make([]byte, journalCalls*slotSize)
	n, _ := f.ReadAt(data, 0)
	j.load(data[:n-n%slotSize])
	if n < len(data) {
		blank := strings.Repeat(strings.Repeat(" ", slotSize-1)+"\n", (len(data)-n)/slotSize+1)
		if _, err = f.WriteAt([]byte(blank[:len(data)-n+n%slotSize]), int64(n-n%slotSize)); err == nil {
			err = f.Sync()
		}
	}
	if err != nil {
		_ = f.Close()
		_ = os.Remove(f.Name())
		return
	}
	j.index = f
}

// load takes over the slots of an index. The number in each says which is the
// newest.
func (j *journal) load(data []byte) {
	newest := -1
	for i := range len(data) / slotSize {
		var state byte
		var order int
		var id string
		if _, err := fmt.Sscanf(string(data[i*slotSize:(i+1)*slotSize]), "%c %d %s", &state, &order, &id); err != nil {
			continue
		}
		if state != stateBegun && state != stateDone || !wire.ValidCallID(id) || order < 0 || order%journalCalls != i {
			continue
		}
		j.calls[i] = entry{id, state}
		j.slots[id] = i
		newest = max(newest, order)
	}
	j.next = newest + 1
}

// state tells what is known of a call.
func (j *journal) state(id string) byte {
	if slot, ok := j.slots[id]; ok {
		return j.calls[slot].state
	}
	return stateNew
}

// begin remembers that a call begins, in place of the oldest.
func (j *journal) begin(id string) {
	if j.index == nil {
		j.open()
	}
	slot := j.next % journalCalls
	if old := j.calls[slot]; old.id != "" {
		j.drop(old.id) // it may have run for that long
		delete(j.slots, old.id)
	}
	if past := j.next - journalResults; past >= 0 {
		j.drop(j.calls[past%journalCalls].id)
	}
	j.calls[slot], j.slots[id] = entry{id, stateBegun}, slot
	j.write(slot, j.next)
	j.next++
}

// finish remembers what came of a call: first the result, then that there is one.
func (j *journal) finish(id string, reply wire.ToolReply) {
	slot, ok := j.slots[id]
	if !ok { // more than journalCalls began since
		return
	}
	if err := j.keep(id, reply); err != nil && j.held+len(reply.Text) <= inMemory {
		j.results[id] = reply
		j.held += len(reply.Text)
	}
	j.calls[slot].state = stateDone
	order := j.next - 1 - (j.next-1-slot)%journalCalls
	j.write(slot, order)
}

// write puts a slot on the disk. A disk that fails here is worth no word: the
// slot is in memory.
func (j *journal) write(slot, order int) {
	if j.index == nil {
		return
	}
	line := fmt.Sprintf("%c %d %s", j.calls[slot].state, order, j.calls[slot].id)
	line += strings.Repeat(" ", slotSize-1-len(line)) + "\n"
	if _, err := j.index.WriteAt([]byte(line), int64(slot*slotSize)); err == nil {
		_ = j.index.Sync()
	}
}

func (j *journal) path(id string) string { return filepath.Join(j.dir, id+".json") }

// keep writes a result to its file, whole or not at all.
func (j *journal) keep(id string, reply wire.ToolReply) error {
	if j.index == nil {
		return errors.New("no index")
	}
	text, err := json.Marshal(reply)
	if err != nil {
		return err
	}
	temp := j.path(id) + ".tmp"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(text); err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(temp, j.path(id))
	}
	if err != nil {
		_ = os.Remove(temp)
	}
	return err
}

// drop forgets the result of a call.
func (j *journal) drop(id string) {
	if reply, ok := j.results[id]; ok {
		j.held -= len(reply.Text)
		delete(j.results, id)
	} else if id != "" {
		_ = os.Remove(j.path(id))
	}
}

// result is what came of a call that is done.
func (j *journal) result(id string) (wire.ToolReply, bool) {
	if reply, ok := j.results[id]; ok {
		return reply, true
	}
	text, err := os.ReadFile(j.path(id))
	if err != nil {
		return wire.ToolReply{}, false
	}
	var reply wire.ToolReply
	if err := json.Unmarshal(text, &reply); err != nil {
		return wire.ToolReply{}, false
	}
	return reply, true
}
