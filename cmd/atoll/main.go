// Command atoll is the server and its tools in one static binary.
//
// gVisor runs its parts by executing this binary again under other names; main
// hands those over before it looks at anything. Everything else is a
// subcommand, one file for each noun. A command that fails says what it was
// doing in one line on standard error and exits 1; atoll exec and atoll shell
// exit with the code of the command they ran.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/atoll-run/atoll/internal/sandbox/gvisor"
)

func main() {
	gvisor.MaybeRun()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(exitCode(err, os.Stderr))
}

// exitError ends the program with a code and, unless silent, a message.
type exitError struct {
	code int
	err  error // nil: say nothing
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// exitCode reports err, if it is worth a word, and answers the exit code.
func exitCode(err error, stderr io.Writer) int {
	if err == nil {
		return 0
	}
	code := 1
	if e, ok := errors.AsType[*exitError](err); ok {
		if code = e.code; e.err == nil {
			return code
		}
	}
	_ = sayText(stderr, fmt.Sprintf("atoll: %v\n", err)) // nobody is left to tell
	return code
}

// streams is where a command reads and writes, and its environment.
type streams struct {
	getenv func(string) string
	in     io.Reader
	out    io.Writer
	err    io.Writer
}

// commands is the command line. Each command's file is its noun.
type commands struct {
	Serve     serveCmd     `cmd:"" help:"Run the server."`
	Doctor    doctorCmd    `cmd:"" help:"Check every prerequisite and say how to get what is missing."`
	Key       keyCmd       `cmd:"" help:"Create, list and revoke API keys."`
	Workspace workspaceCmd `cmd:"" help:"Create, list and archive workspaces, which see nothing of each other."`
	Template  templateCmd  `cmd:"" help:"List, show and build base templates."`
	Reload    reloadCmd    `cmd:"" help:"Let the running server take up a changed configuration file."`
	Cache     cacheCmd     `cmd:"" help:"Show and prune the package layers."`
	Exec      execCmd      `cmd:"" help:"Run a command in a session's sandbox and exit with its code."`
	Chat      chatCmd      `cmd:"" help:"Talk to an agent on the terminal."`
	Shell     shellCmd     `cmd:"" help:"Open an interactive shell in a session's sandbox."`
	Build     buildCmd     `cmd:"" help:"Show the build of an environment's package layers."`
	Egress    egressCmd    `cmd:"" help:"List what a session's sandbox tried to reach and what was decided."`
	Version   versionCmd   `cmd:"" help:"Print the version."`
}

// run parses the command line and runs one command. Every flag with a setting
// tag can be given as that variable instead; the flag wins.
func run(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) error {
	left := false // help was printed
	parser, err := kong.New(&commands{},
		kong.Name("atoll"),
		kong.Description("Self-hosted environments for AI agents: every session gets its own isolated Linux sandbox."),
		kong.Writers(stdout, stderr),
		kong.Exit(func(int) { left = true }),
		kong.UsageOnError(),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true}),
		kong.Resolvers(variables(getenv)),
		kong.ValueFormatter(func(v *kong.Value) string {
			if name := v.Tag.Get("setting"); name != "" {
				return v.Help + " (" + name + ")"
			}
			return v.Help
		}),
	)
	if err != nil {
		return fmt.Errorf("declaring the command line: %w", err)
	}
	parsed, err := parser.Parse(args)
	if left {
		return nil
	}
	if err != nil {
		return &exitError{code: 2, err: fmt.Errorf("%w; see atoll --help", err)}
	}
	parsed.BindTo(ctx, (*context.Context)(nil))
	parsed.Bind(&streams{getenv: getenv, in: stdin, out: stdout, err: stderr})
	return parsed.Run()
}

// variables answers flags from the environment.
func variables(getenv func(string) string) kong.Resolver {
	return kong.ResolverFunc(func(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
		name := flag.Tag.Get("setting")
		if name == "" {
			return nil, nil
		}
		if value := strings.TrimSpace(getenv(name)); value != "" {
			return value, nil
		}
		return nil, nil
	})
}
