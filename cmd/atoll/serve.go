package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/term"

	"github.com/atoll-run/atoll/internal/image"
)

// defaultKeyFile is where the first start leaves the API key, in the data
// directory.
const defaultKeyFile = "default.key"

// defaultListen is for commands that check a configuration without listening.
const defaultListen = "127.0.0.1:8400"

// dataFlag names the data directory; client commands look there for the key
// that the first start of a server left.
type dataFlag struct {
	Data string `help:"Directory of the database, package layers and sessions. Default: /var/lib/atoll for root, else ~/.local/share/atoll." setting:"ATOLL_DATA" type:"path" placeholder:"DIR"`
}

func (f dataFlag) dir(io *streams) string {
	if f.Data != "" {
		return f.Data
	}
	return defaultData(io.getenv)
}

// hostFlags are the settings that every command on the server's side shares.
type hostFlags struct {
	dataFlag
	Cache     string `help:"Directory of template images and the Debian packages they are made of; may be shared. Default: atoll in the user's cache directory." setting:"ATOLL_CACHE" type:"path" placeholder:"DIR"`
	Config    string `help:"YAML file of what is structured: templates, registries, egress, limits, packages, model, agent." setting:"ATOLL_CONFIG" type:"path" placeholder:"FILE"`
	LogLevel  string `help:"Least level that is logged: debug, info, warn, error." setting:"ATOLL_LOG_LEVEL" default:"info" placeholder:"LEVEL"`
	LogFormat string `help:"text or json. Default: text on a terminal, json otherwise." setting:"ATOLL_LOG_FORMAT" placeholder:"FORMAT"`
}

// load makes the whole configuration and says everything that is wrong with it.
func (f hostFlags) load(io *streams, listen string) (Config, error) {
	cfg := Config{
		Listen: listen, Data: f.dir(io), Cache: f.Cache,
		APIKey: io.getenv("ATOLL_API_KEY"), LogLevel: f.LogLevel, LogFormat: f.LogFormat,
	}
	if cfg.Cache == "" {
		cfg.Cache = image.DefaultCacheDir()
	}
	var errs []error
	for _, dir := range []*string{&cfg.Data, &cfg.Cache} {
		abs, err := filepath.Abs(*dir)
		errs = append(errs, err)
		*dir = abs
	}
	if f.Config != "" {
		errs = append(errs, cfg.readFile(f.Config))
	}
	errs = append(errs, cfg.Model.resolve(io.getenv), cfg.Agent.WebSearch.resolve(io.getenv), cfg.validate())
	if err := errors.Join(errs...); err != nil {
		return Config{}, fmt.Errorf("the configuration is refused:\n%w", err)
	}
	return cfg, nil
}

// logger writes to w as the configuration says.
func (c *Config) logger(w io.Writer) *slog.Logger {
	level := map[string]slog.Level{"debug": slog.LevelDebug, "warn": slog.LevelWarn, "error": slog.LevelError}[c.LogLevel]
	options := &slog.HandlerOptions{Level: level}
	if c.LogFormat == "text" || c.LogFormat == "" && isTerminal(w) {
		return slog.New(slog.NewTextHandler(w, options))
	}
	return slog.New(slog.NewJSONHandler(w, options))
}

// isTerminal tells whether a stream is a person's terminal.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

type serveCmd struct {
	hostFlags
	Listen string `help:"Address of the HTTP server." setting:"ATOLL_LISTEN" default:"127.0.0.1:8400" placeholder:"HOST:PORT"`
}

// Run serves until SIGTERM or SIGINT. It does not start half-working: a
// prerequisite that is missing is said in doctor's words and ends it.
func (c serveCmd) Run(ctx context.Context, io *streams) error {
	cfg, err := c.load(io, c.Listen)
	if err != nil {
		return err
	}
	for _, dir := range []string{cfg.Data, cfg.Cache} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return fmt.Errorf("making a directory of the server: %w", err)
		}
	}
	if err := preflight(ctx, cfg); err != nil {
		return err
	}
	log := cfg.logger(io.err)
	again := func() (Config, error) { return c.load(io, c.Listen) }
	return serve(ctx, cfg, again, log, func(url string) { greet(io.out, url, cfg) })
}

// greet says how to use the server that has just become ready.
func greet(out io.Writer, url string, cfg Config) {
	key := filepath.Join(cfg.Data, defaultKeyFile)
	say(out, "atoll %s is ready at %s\nAPI key: %s\n", versionString(), url, key)
	if !isTerminal(out) {
		return
	}
	say(out, `
Try it (pip install anthropic):

  from anthropic import Anthropic
  client = Anthropic(base_url=%q, api_key=open(%q).read().strip())
  env = client.beta.environments.create(name="first", config={"type": "cloud", "packages": {"type": "packages", "pip": ["numpy"]}})
  print(env.id)

Ctrl-C stops the server; sandboxes go on and are found again at the next start.

`, url, key)
}
