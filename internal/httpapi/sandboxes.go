package httpapi

import (
	"context"
	"io"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/internal/sandbox"
)

// Sandboxes is what the routes below /atoll/v1 need: control's hold on
// sandboxes, builds and egress decisions. Errors for the caller are
// [control.Fault]s.
type Sandboxes interface {
	Exec(ctx context.Context, caller control.Caller, session string, cmd sandbox.Command) (sandbox.Process, error)
	ReadFile(ctx context.Context, caller control.Caller, session, path string) (sandbox.FileInfo, io.ReadCloser, error)
	WriteFile(ctx context.Context, caller control.Caller, session, path string, mode uint32, body io.Reader) error
	WriteTar(ctx context.Context, caller control.Caller, session, path string, body io.Reader) error
	RemoveFile(ctx context.Context, caller control.Caller, session, path string) error
	BuildStatus(ctx context.Context, caller control.Caller, environment string) (api.Build, error)
	// BuildLog calls write with the log from an offset on, until its end, or
	// with follow until the build has ended. write's error is returned.
	BuildLog(ctx context.Context, caller control.Caller, environment string, offset int64, follow bool, write func([]byte) error) error
	Rebuild(ctx context.Context, caller control.Caller, environment string) (api.Build, error)
	Egress(ctx context.Context, caller control.Caller, session string, filter egress.Filter) ([]egress.Record, error)
	Templates(ctx context.Context, caller control.Caller) ([]api.Template, error)
}
