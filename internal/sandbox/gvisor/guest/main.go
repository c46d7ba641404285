// Command guest is Atoll's own program inside every sandbox: its first process,
// and the hand that moves files. It is started from a descriptor of the host,
// so it has no path in the sandbox and needs nothing of the image. What it says
// is not trusted by the server.
//
//	guest init PIDS MEMORY  set limits, then reap orphans for ever
//	guest read PATH         head line, then the file or a tar of the directory
//	guest write PATH MODE   chunks on standard input replace the file; head line
//	guest untar PATH        chunks of a tar stream, also of gzip or zstd, on standard input; head line
//	guest remove PATH       head line
//	guest quiesce           kill everything else, write everything back
//	guest call              hand a tool call on standard input to the daemon
//	guest daemon            run tool calls; started by guest call
package main

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"strconv"
	"syscall"

	"github.com/atoll-run/atoll/internal/sandbox/gvisor/guest/tools"
	"github.com/atoll-run/atoll/internal/sandbox/gvisor/guest/wire"
)

func main() {
	syscall.Umask(0)
	if len(os.Args) < 2 {
		os.Exit(2)
	}
	if os.Args[1] == "init" {
		initLoop(os.Args[2:])
	}
	if os.Args[1] == "quiesce" {
		quiesce()
		os.Exit(0)
	}
	if os.Args[1] == "call" || os.Args[1] == "daemon" {
		runTools(os.Args[1])
	}
	if len(os.Args) < 3 {
		os.Exit(2)
	}
	out := bufio.NewWriterSize(os.Stdout, 64<<10)
	err := run(os.Args[1], os.Args[2], os.Args[3:], out)
	if err == nil {
		err = out.Flush()
	}
	if err != nil {
		os.Exit(1)
	}
}

// runTools is the life of a client or of the daemon.
func runTools(verb string) {
	var err error
	if verb == "daemon" {
		err = tools.Daemon()
	} else {
		err = tools.Client(os.Stdin, os.Stdout)
	}
	if err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

// run answers one request. An error means that the answer is incomplete.
func run(verb, path string, rest []string, out *bufio.Writer) error {
	in := &wire.ChunkReader{R: bufio.NewReaderSize(os.Stdin, 64<<10)}
	switch verb {
	case "read":
		return readPath(path, out)
	case "write":
		mode, err := strconv.ParseUint(rest[0], 8, 32)
		if err != nil {
			return err
		}
		return wire.WriteHead(out, answer(writeFile(path, os.FileMode(mode).Perm(), in)))
	case "untar":
		return wire.WriteHead(out, answer(unpackInto(path, in)))
	case "remove":
		return wire.WriteHead(out, answer(remove(path)))
	}
	return errors.New("unknown verb")
}

// answer turns the outcome of a request into its head line.
func answer(err error) wire.Head {
	if err == nil {
		return wire.Head{}
	}
	kind := wire.KindFile
	if errors.Is(err, fs.ErrNotExist) {
		kind = wire.KindNoFile
	}
	text := err.Error()
	if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
		text = pe.Err.Error()
	}
	return wire.Head{Kind: kind, Text: text}
}
