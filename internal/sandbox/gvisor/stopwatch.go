package gvisor

import (
	"log/slog"
	"time"
)

// stopwatch says where the time of a Create went, for the debug log.
type stopwatch struct {
	last time.Time
	laps []any
}

func newStopwatch() *stopwatch { return &stopwatch{last: time.Now()} }

func (s *stopwatch) lap(name string) {
	now := time.Now()
	s.laps = append(s.laps, slog.Duration(name, now.Sub(s.last)))
	s.last = now
}

func (s *stopwatch) attr() slog.Attr { return slog.Group("took", s.laps...) }
