package main

import (
	"cmp"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/internal/sandbox"
	"github.com/atoll-run/atoll/internal/sandbox/gvisor"
)

// newDecisionCounter counts the network decisions by verdict and reason.
func newDecisionCounter(reg prometheus.Registerer) (func(egress.Record), error) {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "atoll_egress_decisions_total", Help: "Network decisions by who asked, verdict and reason.",
	}, []string{"source", "verdict", "reason"})
	if err := reg.Register(c); err != nil {
		return nil, fmt.Errorf("registering network metrics: %w", err)
	}
	return func(r egress.Record) {
		c.WithLabelValues(r.Source, string(r.Verdict), string(r.Reason)).Inc()
	}, nil
}

// registerGauges adds what is asked at the time of a scrape.
func registerGauges(reg prometheus.Registerer, sandboxes *control.Sandboxes, builds *control.Builds, budgets budgets, room func() (gvisor.Room, error)) error {
	for _, c := range []prometheus.Collector{
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		&states{prometheus.NewDesc("atoll_sandboxes", "Sandboxes of sessions by state.", []string{"state"}, nil), sandboxes.Counts, prometheus.GaugeValue},
		&states{prometheus.NewDesc("atoll_builds_total", "Builds of environments since the start by outcome.", []string{"status"}, nil), builds.Counts, prometheus.CounterValue},
		budgetGauge("atoll_descriptors", "Descriptors that sessions, builds and clients share, by total and used.", budgets.descriptors),
		budgetGauge("atoll_request_memory_bytes", "Memory that bodies and collected outputs of requests share, by total and used.", budgets.memory),
		newRoomGauges(room),
	} {
		if err := reg.Register(c); err != nil {
			return fmt.Errorf("registering metrics: %w", err)
		}
	}
	return nil
}

// budgetGauge is a metric of what a budget has and what is used of it.
func budgetGauge(name, help string, budget *control.Budget) *states {
	return &states{prometheus.NewDesc(name, help, []string{"state"}, nil), func() map[string]int {
		total, used := budget.State()
		return map[string]int{"total": int(total), "used": int(used)}
	}, prometheus.GaugeValue}
}

// states is a metric with one label whose values are counted when asked.
type states struct {
	desc  *prometheus.Desc
	count func() map[string]int
	kind  prometheus.ValueType
}

// Describe implements prometheus.Collector.
func (s *states) Describe(out chan<- *prometheus.Desc) { out <- s.desc }

// Collect implements prometheus.Collector.
func (s *states) Collect(out chan<- prometheus.Metric) {
	for state, n := range s.count() {
		out <- prometheus.MustNewConstMetric(s.desc, s.kind, float64(n), state)
	}
}

// roomGauges are metrics of what the host has for sandboxes, looked up once a
// scrape.
type roomGauges struct {
	room  func() (gvisor.Room, error)
	disk  *prometheus.Desc
	tasks *prometheus.Desc
}

func newRoomGauges(room func() (gvisor.Room, error)) *roomGauges {
	return &roomGauges{room,
		prometheus.NewDesc("atoll_host_disk_bytes", "Space of the data directory's file system: free, kept back, promised to sandboxes, and promisable.", []string{"kind"}, nil),
		prometheus.NewDesc("atoll_host_processes", "Processes and threads of the host: promised to sandboxes, and promisable.", []string{"kind"}, nil)}
}

// Describe implements prometheus.Collector.
func (g *roomGauges) Describe(out chan<- *prometheus.Desc) {
	out <- g.disk
	out <- g.tasks
}

// Collect implements prometheus.Collector.
func (g *roomGauges) Collect(out chan<- prometheus.Metric) {
	r, err := g.room()
	if err != nil {
		out <- prometheus.NewInvalidMetric(g.disk, err)
		return
	}
	for kind, n := range map[string]int64{"free": r.DiskFree, "reserve": r.DiskReserve, "committed": r.DiskCommitted, "promisable": r.DiskPromisable} {
		out <- prometheus.MustNewConstMetric(g.disk, prometheus.GaugeValue, float64(n), kind)
	}
	for kind, n := range map[string]int{"committed": r.TasksCommitted, "promisable": r.TasksPromisable} {
		out <- prometheus.MustNewConstMetric(g.tasks, prometheus.GaugeValue, float64(n), kind)
	}
}

// builderLimits are what a builder sandbox may use: what the configuration says,
// else 4 GiB of memory or half of the machine's, 4,096 processes and 10 GiB of
// disk, and the processors that a session may have.
func builderLimits(own, session sandbox.Limits) sandbox.Limits {
	return sandbox.Limits{
		MemoryBytes: cmp.Or(own.MemoryBytes, min(4<<30, machineMemory()/2)), CPUs: cmp.Or(own.CPUs, session.CPUs),
		Processes: cmp.Or(own.Processes, 4096), DiskBytes: cmp.Or(own.DiskBytes, 10<<30),
	}
}

// machineMemory is the host's memory in bytes; 8 GiB where it cannot be read.
func machineMemory() int64 {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 8 << 30
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "MemTotal:" {
			if kib, err := strconv.ParseInt(f[1], 10, 64); err == nil {
				return kib << 10
			}
		}
	}
	return 8 << 30
}
