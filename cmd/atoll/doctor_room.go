package main

import (
	"cmp"
	"fmt"

	"github.com/atoll-run/atoll/internal/sandbox/gvisor"
)

// leastRoom is how many sandboxes with the configured limits a useful host has
// room for: one of a session and one of an install.
const leastRoom = 2

// checkRoom tells what the host has promised to sandboxes, and for how many more
// with the configured limits there is room.
func checkRoom(cfg Config) (string, error) {
	room, err := gvisor.Survey(cfg.engineConfig(nil))
	if err != nil {
		return "", err
	}
	disk := cmp.Or(int64(cfg.Limits.Disk), gvisor.DefaultDiskBytes)
	tasks := gvisor.HostTasks(cmp.Or(cfg.Limits.Processes, gvisor.DefaultProcesses))
	byDisk := max(0, room.DiskPromisable-room.DiskCommitted) / disk
	byTasks := int64(max(0, room.TasksPromisable-room.TasksCommitted) / tasks)
	found := fmt.Sprintf("disk: %s GiB free, %s of them kept back, %s of %s promised; processes: %d of %d promised; room for %d more sandboxes by disk, %d by processes",
		gib(uint64(room.DiskFree)), gib(uint64(room.DiskReserve)), gib(uint64(room.DiskCommitted)), gib(uint64(room.DiskPromisable)),
		room.TasksCommitted, room.TasksPromisable, byDisk, byTasks)
	if min(byDisk, byTasks) < leastRoom {
		return "", fmt.Errorf("%s: fewer than %d", found, leastRoom)
	}
	return found, nil
}
