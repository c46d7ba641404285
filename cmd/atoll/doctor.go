package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Check is one prerequisite of the server on this host.
type Check struct {
	// Name is what is checked: "overlayfs".
	Name string
	// Required checks keep the server from starting when they fail; the others
	// are warnings.
	Required bool
	// Slow checks reach out to the network or start a sandbox; serve leaves
	// them out.
	Slow bool
	// Run looks. It answers what it found, in a few words, or what is wrong.
	Run func(ctx context.Context) (found string, err error)
	// Remedy says what to do when the check fails.
	Remedy string
}

// errSkip marks a check that has nothing to look at; its text says why.
var errSkip = errors.New("nothing to check")

// verdict is how one check came out.
type verdict string

const (
	passed  verdict = "ok"
	skipped verdict = "skip"
	warned  verdict = "warn"
	failed  verdict = "FAIL"
)

// perform runs one check and answers its verdict and a line about it.
func (c Check) perform(ctx context.Context) (verdict, string) {
	found, err := c.Run(ctx)
	switch {
	case err == nil:
		return passed, found
	case errors.Is(err, errSkip):
		return skipped, strings.TrimSuffix(err.Error(), ": "+errSkip.Error())
	case c.Required:
		return failed, err.Error()
	default:
		return warned, err.Error()
	}
}

// preflight runs the required checks that are quick. Its error names every
// failure and what to do.
func preflight(ctx context.Context, cfg Config) error {
	var lines []string
	for _, c := range checks(cfg) {
		if !c.Required || c.Slow {
			continue
		}
		if v, words := c.perform(ctx); v == failed {
			lines = append(lines, fmt.Sprintf("%s: %s\n    %s", c.Name, words, c.Remedy))
		}
	}
	if len(lines) == 0 {
		return nil
	}
	return fmt.Errorf("this host cannot run sandboxes yet:\n  %s\nAll checks: atoll doctor", strings.Join(lines, "\n  "))
}

type doctorCmd struct {
	hostFlags
	Deep bool `help:"Read every package layer and compare it with what was installed. It takes as long as reading them does."`
}

// Run performs every check and prints it as it comes. It exits 1 when a
// required one failed.
func (c doctorCmd) Run(ctx context.Context, io *streams) error {
	cfg, err := c.load(io, defaultListen)
	if err != nil {
		return err
	}
	missing := 0
	list := checks(cfg)
	if c.Deep {
		list = append(list, deepCheck(cfg))
	}
	for _, check := range list {
		v, words := check.perform(ctx)
		if err := ctx.Err(); err != nil {
			return err
		}
		say(io.out, "%-4s  %-20s  %s\n", v, check.Name, words)
		if v == failed || v == warned {
			say(io.out, "      %-20s  → %s\n", "", check.Remedy)
		}
		if v == failed {
			missing++
		}
	}
	if missing > 0 {
		return &exitError{code: 1, err: fmt.Errorf("%d required checks failed", missing)}
	}
	sayText(io.out, "\nThis host can run Atoll.\n")
	return nil
}
