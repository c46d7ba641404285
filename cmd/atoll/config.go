package main

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/internal/httpapi"
	"github.com/atoll-run/atoll/internal/image"
	"github.com/atoll-run/atoll/internal/sandbox/gvisor"
)

// Config is everything that an operator can set. The first group comes from
// flags and variables, the rest from the configuration file. docs/configuration.md
// describes each field, and a test holds the two together.
type Config struct {
	// Listen is the address of the HTTP server, "127.0.0.1:8400" by default.
	Listen string `yaml:"-"`
	// Data is the directory of the database, package layers and sessions.
	Data string `yaml:"-"`
	// Cache is the directory of template images and the Debian packages they are made of.
	Cache string `yaml:"-"`
	// APIKey, when set, is accepted as a key of the default workspace.
	APIKey string `yaml:"-"`
	// LogLevel is debug, info, warn or error.
	LogLevel string `yaml:"-"`
	// LogFormat is text or json; empty means text on a terminal, json otherwise.
	LogFormat string `yaml:"-"`

	// HTTP adjusts the HTTP server.
	HTTP HTTPConfig `yaml:"http"`
	// Templates are added to the built-in ones; one of the same name replaces it.
	Templates []image.Declaration `yaml:"templates"`
	// Registries maps a template, or "*" for all, to package managers, to the
	// hosts ("host" or "host:port") that their installs reach. They replace
	// what was learned; a host that begins with "+" is added to it.
	Registries map[string]map[string][]string `yaml:"registries"`
	// CAFile is a PEM bundle with the authorities that go into templates, and
	// that the server's own web tools believe; empty means the host's own extra
	// ones.
	CAFile string `yaml:"ca_file"`
	// Egress adjusts what sandboxes can reach.
	Egress EgressConfig `yaml:"egress"`
	// Limits of each session's sandbox.
	Limits LimitsConfig `yaml:"limits"`
	// Host says what the machine promises to all sandboxes together.
	Host HostConfig `yaml:"host"`
	// Sessions says what becomes of sessions' sandboxes.
	Sessions SessionsConfig `yaml:"sessions"`
	// Packages says how package layers are built.
	Packages PackagesConfig `yaml:"packages"`
	// Model says where the models of agents are.
	Model ModelConfig `yaml:"model"`
	// Agent bounds what one turn of an agent may do.
	Agent AgentConfig `yaml:"agent"`
}

// HTTPConfig adjusts the HTTP server.
type HTTPConfig struct {
	// Hosts are names under which a proxy on this machine asks for /healthz and
	// /metrics, beside localhost and IP addresses. Empty: none.
	Hosts []string `yaml:"hosts"`
	// Origins are the web pages that may ask the API from a browser, such as
	// https://app.example.com. Empty: none.
	Origins []string `yaml:"origins"`
	// Memory is what the bodies of requests and the outputs that are collected
	// for replies may take together; beyond it requests get 429. Zero: an eighth
	// of the machine's, at least 256 MiB and at most 2 GiB.
	Memory Bytes `yaml:"memory"`
}

// leastHTTPMemory lets one request of the largest size pass.
const leastHTTPMemory = 128 << 20

// hosts are the configured names as the server compares them.
func (c HTTPConfig) hosts() ([]string, error) {
	var out []string
	var errs []error
	for i, name := range c.Hosts {
		host, err := egress.Canonical(name)
		if err != nil {
			errs = append(errs, fmt.Errorf("http.hosts[%d]: %w", i, err))
			continue
		}
		out = append(out, host.String())
	}
	return out, errors.Join(errs...)
}

// validate names what is wrong.
func (c HTTPConfig) validate() error {
	_, err := c.hosts()
	errs := []error{err}
	for i, origin := range c.Origins {
		if _, err := httpapi.ParseOrigin(origin); err != nil {
			errs = append(errs, fmt.Errorf("http.origins[%d]: %q: %w", i, origin, err))
		}
	}
	if c.Memory != 0 && c.Memory < leastHTTPMemory {
		errs = append(errs, errors.New("http.memory: less than 128MiB does not hold a large request"))
	}
	return errors.Join(errs...)
}

// EgressConfig adjusts what sandboxes can reach.
type EgressConfig struct {
	// Exempt lets named hosts be at addresses that are not public.
	Exempt []ExemptConfig `yaml:"exempt"`
	// DenyCIDRs are refused in every mode, besides what is not public.
	DenyCIDRs []string `yaml:"deny_cidrs"`
	// Hosts gives names fixed addresses, instead of asking the host's resolver.
	// An address that is not public still needs an exemption.
	Hosts map[string][]string `yaml:"hosts"`
	// BlockHosts are names, or "*." wildcards, refused in every mode.
	BlockHosts []string `yaml:"block_hosts"`
	// BlockPorts are TCP and UDP ports refused in every mode.
	BlockPorts []int `yaml:"block_ports"`
	// OpenPorts are further ports of hosts that an environment allows.
	OpenPorts []OpenPortConfig `yaml:"open_ports"`
	// ECH is what happens to TLS whose server name is encrypted: refuse or
	// allow. Empty means refuse.
	ECH string `yaml:"ech"`
	// Limits of each session's network. They hold for networks made after a start.
	Limits EgressLimits `yaml:"limits"`
}

// ExemptConfig is one host that may be at an address that is not public. All
// three parts must fit.
type ExemptConfig struct {
	// Host is a host name, exactly.
	Host string `yaml:"host"`
	// CIDR is where it may be.
	CIDR string `yaml:"cidr"`
	// Ports on which it is reached; empty means 80 and 443.
	Ports []int `yaml:"ports"`
}

// LimitsConfig bounds each session's sandbox. Zero means the engine's default.
type LimitsConfig struct {
	// Memory of all processes and in-memory files together.
	Memory Bytes `yaml:"memory"`
	// CPUs is processor time per wall time.
	CPUs float64 `yaml:"cpus"`
	// Processes and threads in the sandbox.
	Processes int `yaml:"processes"`
	// Disk is the size of the private writable directory.
	Disk Bytes `yaml:"disk"`
}

// HostConfig says how much of the machine is promised to all sandboxes
// together: those of sessions, hibernated ones included, and of installs. One
// that does not fit is refused. Zero means the engine's default.
type HostConfig struct {
	// DiskOvercommit is how many times the free space without the reserve may be
	// promised. Zero: 1.
	DiskOvercommit float64 `yaml:"disk_overcommit"`
	// DiskReserve stays free on the data directory's file system for the
	// database, logs and package layers, and on the cache directory's. Zero: a twentieth of it, at most 1 GiB.
	DiskReserve Bytes `yaml:"disk_reserve"`
	// Processes and threads of the host. Zero: seven eighths of what the kernel
	// allows, or all but 4096 if that is more.
	Processes int `yaml:"processes"`
}

// validate names what is wrong.
func (h HostConfig) validate() error {
	var errs []error
	if f := h.DiskOvercommit; f != 0 && (f < 1 || f > 1000 || f != f) {
		errs = append(errs, fmt.Errorf("host.disk_overcommit: %v is not a factor from 1 to 1000", f))
	}
	if h.Processes < 0 {
		errs = append(errs, fmt.Errorf("host.processes: %d is negative", h.Processes))
	}
	return errors.Join(errs...)
}

// engineConfig is the configuration of the sandbox engine.
func (c *Config) engineConfig(log *slog.Logger) gvisor.Config {
	return gvisor.Config{
		Dir: filepath.Join(c.Data, "sandboxes"), Logger: log, DefaultLimits: c.Limits.limits(),
		DiskOvercommit: c.Host.DiskOvercommit, MinFreeBytes: int64(c.Host.DiskReserve), MaxTasks: c.Host.Processes,
	}
}

// SessionsConfig says what becomes of sessions' sandboxes.
type SessionsConfig struct {
	// HibernateAfter is how long nothing may use a sandbox before its processes
	// are put on disk. Zero: ten minutes.
	HibernateAfter Patience `yaml:"hibernate_after"`
}

// Patience is a time span, or -1 for no end. In YAML: "10m", or "never".
type Patience time.Duration

// UnmarshalYAML reads a time span or "never".
func (p *Patience) UnmarshalYAML(node *yaml.Node) error {
	if node.Value == "never" {
		*p = -1
		return nil
	}
	var d Duration
	if err := d.UnmarshalYAML(node); err != nil || d != 0 && time.Duration(d) < time.Second {
		return oneOfMany("line %d: %q is not a time span like 90s, 10m or 24h of at least a second, nor never", node.Line, node.Value)
	}
	*p = Patience(d)
	return nil
}

// PackagesConfig says how package layers are built. Zero means the default.
type PackagesConfig struct {
	// ManagerTimeout bounds one manager's install.
	ManagerTimeout Duration `yaml:"manager_timeout"`
	// MaxAge is how long a layer with unpinned packages is used for new builds.
	MaxAge Duration `yaml:"max_age"`
	// MaxParallel bounds the builds that run at the same time.
	MaxParallel int `yaml:"max_parallel"`
	// Quota of all package layers together: beyond it the least recently used
	// ones that no environment or session uses are removed. Zero: 20 GiB.
	Quota Bytes `yaml:"quota"`
	// DownloadQuota of what package managers downloaded: beyond it the least
	// recently used downloads are removed. Zero: 10 GiB.
	DownloadQuota Bytes `yaml:"download_quota"`
	// Memory of one install's sandbox. Zero: 4 GiB, or half of the machine's if
	// that is less.
	Memory Bytes `yaml:"memory"`
	// CPUs is processor time per wall time of one install. Zero: limits.cpus.
	CPUs float64 `yaml:"cpus"`
	// Processes and threads of one install. Zero: 4096.
	Processes int `yaml:"processes"`
	// Disk is what one install may write, scratch space included. Zero: 10 GiB.
	Disk Bytes `yaml:"disk"`
}

// Bytes is a size. In YAML: a number of bytes, or a number with KiB, MiB, GiB
// or TiB.
type Bytes int64

// UnmarshalYAML reads a size.
func (b *Bytes) UnmarshalYAML(node *yaml.Node) error {
	text := strings.TrimSpace(node.Value)
	number, shift := text, 0
	for i, unit := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if rest, ok := strings.CutSuffix(text, unit); ok {
			number, shift = strings.TrimSpace(rest), 10*(i+1)
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || node.Kind != yaml.ScalarNode || n < 0 || n > (1<<62)>>shift {
		return oneOfMany("line %d: %q is not a size: a number of bytes, or a number with KiB, MiB, GiB or TiB", node.Line, node.Value)
	}
	*b = Bytes(n << shift)
	return nil
}

// oneOfMany is an error of the kind that lets the decoder go on and collect.
func oneOfMany(format string, args ...any) error {
	return &yaml.TypeError{Errors: []string{fmt.Sprintf(format, args...)}}
}

// Duration is a time span. In YAML: "90s", "10m", "24h".
type Duration time.Duration

// UnmarshalYAML reads a time span.
func (d *Duration) UnmarshalYAML(node *yaml.Node) error {
	span, err := time.ParseDuration(node.Value)
	if err != nil || span < 0 {
		return oneOfMany("line %d: %q is not a time span like 90s, 10m or 24h", node.Line, node.Value)
	}
	*d = Duration(span)
	return nil
}

// readFile fills the structured part from a YAML file. Unknown fields and
// wrong types are errors, all of them at once.
func (c *Config) readFile(path string) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	return c.parse(path, content)
}

func (c *Config) parse(path string, content []byte) error {
	dec := yaml.NewDecoder(bytes.NewReader(content))
	dec.KnownFields(true)
	switch err := dec.Decode(c); {
	case errors.Is(err, io.EOF): // an empty file sets nothing
		return nil
	case err != nil:
		if all, ok := errors.AsType[*yaml.TypeError](err); ok {
			var errs []error
			for _, e := range all.Errors {
				errs = append(errs, fmt.Errorf("%s: %s", path, e))
			}
			return errors.Join(errs...)
		}
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := dec.Decode(new(any)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: more than one document", path)
	}
	return nil
}

// validate tells everything that is wrong with the configuration, joined.
func (c *Config) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if _, port, err := net.SplitHostPort(c.Listen); err != nil {
		bad("listen: %q is not an address like 127.0.0.1:8400", c.Listen)
	} else if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		bad("listen: %q is not a port", port)
	}
	if c.Data == "" || c.Cache == "" {
		bad("data and cache: both directories are needed")
	} else if within(c.Data, c.Cache) || c.Data == c.Cache {
		bad("data: %s must not be inside the cache directory %s, which may be deleted while nothing runs", c.Data, c.Cache)
	}
	if c.APIKey != "" && (len(c.APIKey) < 8 || strings.ContainsAny(c.APIKey, " \t\r\n")) {
		bad("ATOLL_API_KEY: at least 8 characters, no white space")
	}
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, c.LogLevel) {
		bad("log-level: %q is not debug, info, warn or error", c.LogLevel)
	}
	if !slices.Contains([]string{"", "text", "json"}, c.LogFormat) {
		bad("log-format: %q is not text or json", c.LogFormat)
	}
	_, err := c.templates(nil, nil)
	errs = append(errs, err, c.HTTP.validate(), c.Egress.validate(), c.Limits.validate("limits"), c.Host.validate(), c.Packages.limits().validate("packages"), c.Model.validate(), c.Agent.validate())
	if c.Packages.MaxParallel < 0 {
		bad("packages.max_parallel: %d is negative", c.Packages.MaxParallel)
	}
	return errors.Join(errs...)
}

// within tells whether path is below dir; both are absolute and clean.
func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != "." && rel != ".." && !strings.HasPrefix(rel, "../")
}

// templates returns what is declared, built-in ones included. It checks
// declarations, registries and the authorities' file, and builds nothing.
func (c *Config) templates(log *slog.Logger, open image.OpenBox) (*image.Templates, error) {
	if c.CAFile != "" {
		if _, err := image.ExtraAuthorities(c.CAFile); err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
	}
	return image.NewTemplates(image.TemplatesConfig{
		CacheDir: c.Cache, Holder: c.Data, Declarations: c.Templates, RegistryOverrides: c.Registries, ExtraCAFile: c.CAFile,
		Logger: log, OpenBox: open,
	})
}

// roots are the authorities that the server's web tools believe: what sandboxes
// believe, they do too. nil means those of the host.
func (c *Config) roots() (*x509.CertPool, error) {
	if c.CAFile == "" {
		return nil, nil
	}
	extra, err := image.ExtraAuthorities(c.CAFile)
	if err != nil {
		return nil, fmt.Errorf("ca_file: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("reading the host's authorities: %w", err)
	}
	for _, a := range extra {
		pool.AppendCertsFromPEM(a.PEM())
	}
	return pool, nil
}

// limits are those of one install's sandbox.
func (p *PackagesConfig) limits() LimitsConfig {
	return LimitsConfig{Memory: p.Memory, CPUs: p.CPUs, Processes: p.Processes, Disk: p.Disk}
}

// validate names what is wrong by the group of the fields.
func (l LimitsConfig) validate(group string) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(group+"."+format, args...)) }
	if l.Memory != 0 && l.Memory < 64<<20 {
		bad("memory: less than 64MiB cannot hold a sandbox")
	}
	if l.Disk != 0 && l.Disk < 16<<20 {
		bad("disk: less than 16MiB cannot hold a file system")
	}
	if l.CPUs < 0 || l.CPUs != l.CPUs {
		bad("cpus: %v is not a number of processors", l.CPUs)
	}
	if l.Processes < 0 {
		bad("processes: %d is negative", l.Processes)
	}
	return errors.Join(errs...)
}

// defaultData is where data goes when nothing is said: the system's place for
// root, the user's otherwise.
func defaultData(getenv func(string) string) string {
	if os.Geteuid() == 0 {
		return "/var/lib/atoll"
	}
	if dir := getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "atoll")
	}
	return filepath.Join(getenv("HOME"), ".local/share/atoll")
}
