package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/atoll-run/atoll/internal/agent"
	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/durable"
	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/internal/httpapi"
	"github.com/atoll-run/atoll/internal/image"
	"github.com/atoll-run/atoll/internal/sandbox"
	"github.com/atoll-run/atoll/internal/sandbox/gvisor"
	"github.com/atoll-run/atoll/internal/store"
)

// layersDir is the layer store in the data directory.
const layersDir = "layers"

// pooledNetworks are made ahead, so that a session does not wait for one.
const pooledNetworks = 8

// shutdownPatience is how long requests under way may take to finish.
const shutdownPatience = 10 * time.Second

// serve runs the server until ctx ends. again reads the configuration anew for a
// reload. ready is called once with the base URL when requests are answered.
func serve(ctx context.Context, cfg Config, again func() (Config, error), log *slog.Logger, ready func(url string)) (err error) {
	w := &wiring{cfg: cfg, again: again, log: log, metrics: prometheus.NewRegistry()}
	if w.budgets, err = newBudgets(w.cfg.HTTP); err != nil {
		return err
	}
	// What was opened is closed in the opposite order, whatever happens.
	defer func() { err = errors.Join(err, w.close()) }()
	for _, step := range []func(context.Context) error{w.openStore, w.openEngine, w.openNetwork, w.openImages, w.openControl} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return w.serve(ctx, ready)
}

// wiring holds the parts of a running server while they are put together.
type wiring struct {
	cfg     Config
	again   func() (Config, error)
	log     *slog.Logger
	metrics *prometheus.Registry
	budgets budgets
	closers []func() error

	store     *store.Store
	engine    *gvisor.Engine
	network   *egress.Gateway
	templates *image.Templates
	builder   *image.Builder
	downloads *image.Downloads
	sandboxes *control.Sandboxes
	turns     *control.Turns
	model     *agent.Client // nil: no endpoint is configured
	agents    *agent.Runner
	service   *control.Service
	cache     *control.Cache
}

func (w *wiring) onClose(f func() error) { w.closers = append(w.closers, f) }

func (w *wiring) close() error {
	var errs []error
	for i := len(w.closers) - 1; i >= 0; i-- {
		errs = append(errs, w.closers[i]())
	}
	return errors.Join(errs...)
}

// openStore comes first: it holds the lock that keeps a second server away.
func (w *wiring) openStore(ctx context.Context) (err error) {
	w.store, err = store.Open(ctx, store.Config{Path: filepath.Join(w.cfg.Data, databaseFile), Logger: w.log})
	if err != nil {
		return err
	}
	w.onClose(w.store.Close)
	return nil
}

func (w *wiring) openEngine(context.Context) (err error) {
	config := w.cfg.engineConfig(w.log)
	config.Descriptors = w.budgets.descriptors
	w.engine, err = gvisor.New(config)
	if err != nil {
		return fmt.Errorf("opening the sandbox engine: %w", err)
	}
	w.onClose(w.engine.Close)
	return nil
}

func (w *wiring) openNetwork(context.Context) error {
	config, err := w.cfg.Egress.gatewayConfig()
	if err != nil {
		return err
	}
	if config.OnDecision, err = newDecisionCounter(w.metrics); err != nil {
		return err
	}
	config.Dir, config.Logger, config.PoolSize = filepath.Join(w.cfg.Data, "networks"), w.log, pooledNetworks
	config.Descriptors = w.budgets.descriptors
	w.network, err = egress.New(config)
	if err != nil {
		return fmt.Errorf("opening the network gateway: %w", err)
	}
	w.onClose(func() error { return w.network.Shutdown(context.Background()) })
	return nil
}

func (w *wiring) openImages(context.Context) (err error) {
	boxes := &control.Boxes{Engine: w.engine, Network: w.network, Limits: builderLimits(w.cfg.Packages.limits().limits(), w.cfg.Limits.limits())}
	if w.templates, err = w.cfg.templates(w.log, boxes.Open); err != nil {
		return err
	}
	if w.downloads, err = w.cfg.openDownloads(w.log); err != nil {
		return err
	}
	p := w.cfg.Packages
	w.builder, err = image.NewBuilder(image.BuilderConfig{
		LayersDir: filepath.Join(w.cfg.Data, layersDir), Reserve: int64(w.cfg.Host.DiskReserve), OpenBox: boxes.Open, Downloads: w.downloads, MaxParallel: p.MaxParallel,
		ManagerTimeout: time.Duration(p.ManagerTimeout), MaxAge: time.Duration(p.MaxAge), Logger: w.log,
	})
	if err != nil {
		return fmt.Errorf("opening the layer store: %w", err)
	}
	w.onClose(func() error { w.builder.Close(); return nil })
	return nil
}

// openDownloads opens the cache of what package managers downloaded.
func (c *Config) openDownloads(log *slog.Logger) (*image.Downloads, error) {
	return image.OpenDownloads(image.DownloadsConfig{
		Dir: filepath.Join(c.Cache, "downloads"), Quota: int64(c.Packages.DownloadQuota), Reserve: int64(c.Host.DiskReserve), Logger: log,
	})
}

// openControl joins the parts, brings world and store together, and makes the
// first key.
func (w *wiring) openControl(ctx context.Context) error {
	builds := control.NewBuilds(control.BuildsConfig{Store: w.store, Templates: w.templates, Builder: w.builder, Logger: w.log})
	w.turns = control.NewTurns(w.store, nil)
	w.sandboxes = control.NewSandboxes(control.SandboxesConfig{
		Store: w.store, Engine: w.engine, Network: w.network, Builds: builds, Limits: w.cfg.Limits.limits(), Logger: w.log,
		HibernateAfter: time.Duration(w.cfg.Sessions.HibernateAfter), Notify: w.reportSandbox,
	})
	w.onClose(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		return errors.Join(builds.Shutdown(ctx), w.sandboxes.Shutdown(ctx))
	})
	switch err := w.sandboxes.Reconcile(ctx); {
	case errors.Is(err, control.ErrLeftBehind):
		w.log.ErrorContext(ctx, "reconciling left something behind", "error", err)
	case err != nil:
		return fmt.Errorf("looking for sandboxes: %w", err)
	}
	w.cache = &control.Cache{Store: w.store, Workspaces: w.store, Builder: w.builder, Templates: w.templates, Builds: builds, Downloads: w.downloads, Quota: int64(w.cfg.Packages.Quota), Report: w.pruned}
	if err := w.openAgents(ctx); err != nil {
		return err
	}
	w.onClose(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		return w.agents.Shutdown(ctx)
	})
	w.service = control.New(control.Config{
		Store: w.store, Logger: w.log, Templates: w.templates, Runtime: w.sandboxes, Turns: w.turns, Loop: w.agents,
	})
	if err := registerGauges(w.metrics, w.sandboxes, builds, w.budgets, w.engine.Room); err != nil {
		return err
	}
	if err := w.firstKey(ctx); err != nil {
		return err
	}
	return w.agents.Recover(ctx)
}

// pruned logs what a clean-up of the layer cache did.
func (w *wiring) pruned(gone control.CachePruned, err error) {
	switch {
	case err != nil:
		w.log.Error("cleaning the layer cache", "error", err)
	case len(gone.Keys) > 0 || len(gone.Templates) > 0:
		w.log.Info("layer cache over its quota: removed what nothing uses", "layers", len(gone.Keys), "bytes", gone.Bytes,
			"templates", len(gone.Templates), "template_bytes", gone.TemplateBytes)
	}
}

// firstKey makes the default workspace and leaves its key in the data directory.
func (w *wiring) firstKey(ctx context.Context) error {
	file := filepath.Join(w.cfg.Data, defaultKeyFile)
	_, err := w.service.EnsureDefault(ctx, w.cfg.APIKey, func(secret string) error {
		w.log.InfoContext(ctx, "first start: making the default workspace and a key", "key_file", file)
		return leaveKey(file, secret)
	})
	if err != nil {
		return fmt.Errorf("making the default workspace: %w", err)
	}
	return nil
}

// leaveKey writes a secret into a file that only its owner reads, whole and
// durable when it returns.
func leaveKey(file, secret string) error {
	return durable.WriteFile(file, []byte(secret+"\n"), 0o600, durable.Machine)
}

// serve answers requests until ctx ends, then finishes those under way.
func (w *wiring) serve(ctx context.Context, ready func(url string)) error {
	hosts, err := w.cfg.HTTP.hosts()
	if err != nil {
		return err
	}
	var models httpapi.Models
	if w.model != nil {
		models = w.model
	}
	handler, err := httpapi.New(httpapi.Config{
		Models:  models,
		Service: w.service, Sandboxes: w.sandboxes, Logger: w.log, Metrics: w.metrics, Memory: w.budgets.memory, Hosts: hosts, Origins: w.cfg.HTTP.Origins,
	})
	if err != nil {
		return fmt.Errorf("making the HTTP handler: %w", err)
	}
	listener, err := net.Listen("tcp", w.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	// Streams watch their request's context, which ends when the server does.
	requests, endRequests := context.WithCancel(context.WithoutCancel(ctx))
	defer endRequests()
	server := &http.Server{
		Handler:     handler,
		BaseContext: func(net.Listener) context.Context { return requests },
		ErrorLog:    slog.NewLogLogger(w.log.Handler(), slog.LevelDebug),
	}
	server.RegisterOnShutdown(w.turns.Close)
	failed := make(chan error, 2)
	var background sync.WaitGroup
	reload := &reloader{wiring: w, read: w.again, at: w.cfg}
	doors := httpapi.NewDoors(httpapi.DoorsConfig{Strangers: w.budgets.strangers, Descriptors: w.budgets.descriptors})
	go func() { failed <- doors.Serve(server, listener.(*net.TCPListener)) }()
	background.Go(func() {
		if err := serveAdmin(requests, w.cfg.Data, w.service, w.cache, reload); err != nil {
			failed <- err
		}
	})
	background.Go(func() { w.cache.Run(requests) })
	background.Go(func() { reload.follow(requests) })
	url := "http://" + listener.Addr().String()
	w.log.InfoContext(ctx, "ready", "url", url)
	ready(url)
	select {
	case err = <-failed:
	case <-ctx.Done():
		w.log.Info("stopping")
	}
	patience, cancel := context.WithTimeout(context.Background(), shutdownPatience)
	defer cancel()
	timer := time.AfterFunc(shutdownPatience/2, endRequests)
	defer timer.Stop()
	err = errors.Join(ignoreClosed(err), ignoreClosed(server.Shutdown(patience)))
	endRequests()
	background.Wait()
	return err
}

// ignoreClosed drops what an orderly end reports.
func ignoreClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

// limits are the configured limits as the engine takes them.
func (l LimitsConfig) limits() sandbox.Limits {
	return sandbox.Limits{MemoryBytes: int64(l.Memory), CPUs: l.CPUs, Processes: l.Processes, DiskBytes: int64(l.Disk)}
}
