package gvisor

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"gvisor.dev/gvisor/pkg/state"
	"gvisor.dev/gvisor/pkg/state/statefile"
	"gvisor.dev/gvisor/pkg/state/wire"
)

// gVisor marks every process that its exec call started, and all that descend
// from it, and after a restore it kills what is marked: its caller is not there
// any more. Here the calls have ended before a checkpoint, and what is left of
// them are the sandbox's own background processes, which are to go on. So the
// mark is taken from them in the image, in the form that gVisor itself reads
// and writes: the field of a task that says where it comes from becomes zero,
// which takes as many bytes as the mark. A process without a parent is a
// call that a killed server never ended: it keeps its mark.
const (
	taskType    = "pkg/sentry/kernel.Task"
	originField = "Origin"
	nodeField   = "taskNode" // an object of nodeType
	nodeType    = "pkg/sentry/kernel.taskNode"
	parentField = "parent"
)

// adoptTasks takes the mark of a started command from the processes in the file
// of an image's objects. It trusts the process's limits to end it when the file
// is not what it should be: only an adopter calls it.
func adoptTasks(f *os.File) (err error) {
	// The package that reads objects panics when there is something wrong.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("reading image: %v", p)
		}
	}()
	if _, _, err := statefile.NewReader(f, nil); err != nil { // it takes the file's head
		return fmt.Errorf("reading image: %w", err)
	}
	begin, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return fmt.Errorf("reading image: %w", err)
	}
	in := &imageReader{in: bufio.NewReaderSize(f, 64<<10), at: begin}
	if err := in.stream(nil); err != nil { // the processor's features
		return err
	}
	return in.stream(func(at int64, object []byte) error {
		_, err := f.WriteAt(object, at)
		return err
	})
}

// imageReader reads the objects of an image one after the other.
type imageReader struct {
	in *bufio.Reader
	at int64 // offset in the file of what is read next
}

func (r *imageReader) Read(p []byte) (int, error) {
	n, err := r.in.Read(p)
	r.at += int64(n)
	return n, err
}

// stream reads one group of objects and hands out each task that is to be
// changed, encoded anew, with the place where it lies.
func (r *imageReader) stream(write func(at int64, object []byte) error) error {
	in := &wire.Reader{Reader: r}
	count, isObject, err := state.ReadHeader(in)
	if err != nil || !isObject {
		return errors.Join(errors.New("reading image: no objects where they should be"), err)
	}
	var tasks taskFields
	for types, n := 0, uint64(0); n < count; {
		switch x := wire.Load(in).(type) {
		case *wire.Type:
			types++
			tasks.learn(wire.TypeID(types), x)
		case wire.Uint: // an object's number, and the object
			n++
			at := r.at
			object := wire.Load(in)
			if write == nil || !tasks.adopt(object) {
				continue
			}
			var out bytes.Buffer
			wire.Save(&wire.Writer{Writer: &out}, object)
			if int64(out.Len()) != r.at-at {
				return fmt.Errorf("changing image: a task of %d bytes becomes %d", r.at-at, out.Len())
			}
			if err := write(at, out.Bytes()); err != nil {
				return fmt.Errorf("changing image: %w", err)
			}
		default:
			return fmt.Errorf("reading image: unexpected %T", x)
		}
	}
	if write != nil && !tasks.known() {
		return errors.New("reading image: it is of a form that is not known")
	}
	return nil
}

// taskFields says how tasks are encoded in one image.
type taskFields struct {
	task, nodes          wire.TypeID
	node, origin, parent int // numbers of fields
}

// learn takes up a type; types come before all objects.
func (t *taskFields) learn(id wire.TypeID, typ *wire.Type) {
	switch typ.Name {
	case taskType:
		t.task, t.node, t.origin = id, slices.Index(typ.Fields, nodeField), slices.Index(typ.Fields, originField)
	case nodeType:
		t.nodes, t.parent = id, slices.Index(typ.Fields, parentField)
	}
}

func (t *taskFields) known() bool {
	return t.task > 0 && t.nodes > 0 && t.node >= 0 && t.origin >= 0 && t.parent >= 0
}

// adopt changes a task that a command left in the background; others not.
func (t *taskFields) adopt(object wire.Object) bool {
	task, ok := object.(*wire.Struct)
	if !ok || !t.known() || task.TypeID != t.task || task.Fields() <= max(t.node, t.origin) {
		return false
	}
	node, ok := (*task.Field(t.node)).(*wire.Struct)
	if !ok || node.TypeID != t.nodes || node.Fields() <= t.parent {
		return false
	}
	parent, ok := (*node.Field(t.parent)).(*wire.Ref)
	if !ok || parent.Root == 0 {
		return false
	}
	if origin, ok := (*task.Field(t.origin)).(wire.Int); !ok || origin == 0 {
		return false
	}
	*task.Field(t.origin) = wire.Int(0)
	return true
}
