package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/atoll-run/atoll/internal/httpapi"
	"github.com/atoll-run/atoll/internal/store"
)

type reloadCmd struct{ dataFlag }

// Run asks the running server to read its configuration file again and says
// what came of it.
func (c reloadCmd) Run(ctx context.Context, io *streams) error {
	return c.administer(ctx, io, func(server *client) error {
		res, err := server.send(ctx, http.MethodPost, "/reload", nil, nil)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		var done httpapi.AdminReloaded
		if err := json.NewDecoder(res.Body).Decode(&done); err != nil {
			return fmt.Errorf("reading the reply: %w", err)
		}
		say(io.out, "reloaded; the network policies of %d sessions changed\n", done.Sessions)
		if len(done.NeedRestart) > 0 {
			say(io.out, "changed, but only a restart takes it up: %s\n", strings.Join(done.NeedRestart, ", "))
		}
		return nil
	}, func(dir string, _ *store.Store) error {
		return fmt.Errorf("no server runs on %s", dir)
	})
}

// reloader takes up a changed configuration file while the server runs: what
// the operator says about the network, and the registries. The whole file is
// checked before any of it counts.
type reloader struct {
	wiring *wiring
	read   func() (Config, error)

	mu sync.Mutex // one at a time; guards what follows
	at Config     // what holds now, of the parts that can be reloaded
}

// Reload implements httpapi.AdminReload. After an error the old settings stand,
// unless the error is about single sessions.
func (r *reloader) Reload(ctx context.Context) (httpapi.AdminReloaded, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	done, err := r.reload(ctx)
	if err != nil {
		r.wiring.log.ErrorContext(ctx, "reloading the configuration", "error", err)
		return done, err
	}
	r.wiring.log.InfoContext(ctx, "configuration reloaded", "sessions_changed", done.Sessions, "need_restart", done.NeedRestart)
	return done, nil
}

func (r *reloader) reload(ctx context.Context) (done httpapi.AdminReloaded, err error) {
	next, err := r.read()
	if err != nil {
		return done, err
	}
	gateway, err := next.Egress.gatewayConfig()
	if err != nil {
		return done, err
	}
	// The registries first: they only matter to policies compiled after this,
	// and the gateway's own reload cannot fail on a configuration that was valid.
	if err := r.wiring.templates.SetRegistries(next.Registries); err != nil {
		return done, err
	}
	if err := r.wiring.network.Reload(gateway); err != nil {
		return done, errors.Join(err, r.wiring.templates.SetRegistries(r.at.Registries))
	}
	done.NeedRestart = needRestart(r.at, next)
	limits := r.at.Egress.Limits
	r.at.Registries, r.at.Egress = next.Registries, next.Egress
	r.at.Egress.Limits = limits
	done.Sessions, err = r.wiring.sandboxes.RegistriesChanged(ctx)
	return done, err
}

// needRestart names the settings of the file that differ and are not taken up
// by a reload.
func needRestart(old, next Config) []string {
	out := []string{}
	a, b := reflect.ValueOf(old), reflect.ValueOf(next)
	for i := range a.NumField() {
		name := a.Type().Field(i).Tag.Get("yaml")
		live := name == "-" || name == "registries" || name == "egress"
		if !live && !reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()) {
			out = append(out, name)
		}
	}
	if old.Egress.Limits != next.Egress.Limits {
		out = append(out, "egress.limits")
	}
	return slices.Compact(out)
}

// follow reloads at each SIGHUP until ctx ends, and gives the sandboxes of an
// earlier server the registries of now. What went wrong is in the log.
func (r *reloader) follow(ctx context.Context) {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	if _, err := r.wiring.sandboxes.RegistriesChanged(ctx); err != nil && ctx.Err() == nil {
		r.wiring.log.ErrorContext(ctx, "giving running sandboxes the configured registries", "error", err)
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
			_, _ = r.Reload(ctx) // it logs its error
		}
	}
}
