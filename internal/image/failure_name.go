package image

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"
)

// namingAtOnce bounds the entries that are tried at the same time.
const namingAtOnce = 4

// name finds which entry of a list failed where the tool did not tell: each is
// tried alone, without installing it, and the first that fails is to blame. The
// failure is returned as it is when none does, when a registry does not answer,
// and when the time is over.
func (j *job) name(ctx context.Context, in *install, e evidence, f *Failure) *Failure {
	r := recipes[in.step.Manager]
	named := f.Index >= 0 || f.Package != "" || len(in.specs) < 2
	switch f.Kind {
	case KindPackageNotFound, KindVersionNotFound, KindConflict, KindInstallError:
	default:
		named = true
	}
	if named || r.simulate == nil {
		return f
	}
	ctx, cancel := context.WithTimeout(ctx, j.b.cfg.NamingTime)
	defer cancel()
	j.say("the tool does not say which package failed: trying each alone")
	said, failed := make([][]string, len(in.specs)), make([]bool, len(in.specs))
	var work sync.WaitGroup
	slots := make(chan struct{}, namingAtOnce)
	for i := range in.specs {
		slots <- struct{}{}
		work.Go(func() {
			defer func() { <-slots }()
			if ctx.Err() == nil {
				said[i], failed[i] = in.alone(ctx, r, i)
			}
		})
	}
	work.Wait()
	i := slices.Index(failed, true)
	if i < 0 || ctx.Err() != nil && i > 0 {
		return f // none fails alone, or one before it may
	}
	if _, _, dead := networkWords.find(said[i]); dead {
		return f
	}
	e.current, e.lines = i, said[i]
	found := classify(e)
	found.Tail = f.Tail
	return found
}

// alone tries one entry without installing it, and returns what the tool said.
func (in *install) alone(ctx context.Context, r recipe, index int) (said []string, failed bool) {
	quiet := *in
	quiet.out = &lineWriter{emit: func(string) {}, now: time.Now}
	var out limitedBuffer
	var to *limitedBuffer
	if r.answers {
		to = &out
		out.tee = quiet.out
	}
	err := quiet.command(ctx, append(slices.Clone(r.simulate), in.specs[index].text), to)
	quiet.out.flush()
	said = quiet.out.lines()
	if r.answers && err == nil && strings.TrimSpace(out.buf.String()) == "" {
		return append(said, "No matching version found for "+in.specs[index].text), true
	}
	// Another error than the tool's own says nothing about the entry.
	return said, errors.Is(err, errTool)
}
