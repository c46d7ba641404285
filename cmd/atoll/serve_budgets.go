package main

import (
	"cmp"
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/atoll-run/atoll/internal/control"
)

const (
	// wantedDescriptors is what the process should be able to open.
	wantedDescriptors = 65536
	// reservedDescriptors are for what nobody's budget is asked for: the database,
	// files, builds, networks that are made ahead, the model's connections. A
	// process that may open less than four times as many reserves a quarter.
	reservedDescriptors = 1024
)

// budgets are what the process has once and shares among sessions and clients.
type budgets struct {
	// descriptors are those that may be opened on somebody's behalf.
	descriptors *control.Budget
	// memory is what bodies and collected outputs of requests may take, in bytes.
	memory *control.Budget
	// strangers is how many connections without a valid key may be open: a quarter
	// of what is not reserved, at most 4096.
	strangers int
}

// newBudgets looks at what the process may use. The Go runtime has raised the
// number of descriptors to what the system allows before main began.
func newBudgets(http HTTPConfig) (budgets, error) {
	limit, err := descriptorLimit()
	if err != nil {
		return budgets{}, err
	}
	reserve := min(reservedDescriptors, limit/4)
	strangers := min((limit-reserve)/4, 4096)
	return budgets{
		descriptors: control.NewBudget(limit - reserve - strangers),
		memory:      control.NewBudget(cmp.Or(int64(http.Memory), min(max(machineMemory()/8, 256<<20), 2<<30))),
		strangers:   int(strangers),
	}, nil
}

// descriptorLimit is how many descriptors this process may have open.
func descriptorLimit() (int64, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("asking for the limit of descriptors: %w", err)
	}
	return int64(min(limit.Cur, 1<<30)), nil
}

// checkDescriptors tells whether there are enough for many sessions.
func checkDescriptors(context.Context) (string, error) {
	limit, err := descriptorLimit()
	if err != nil {
		return "", err
	}
	if limit < wantedDescriptors-1 { // the Go runtime leaves one below the hard limit
		return "", fmt.Errorf("the server may open %d files and connections; with many sessions it wants %d", limit, wantedDescriptors)
	}
	return fmt.Sprintf("%d may be open", limit), nil
}
