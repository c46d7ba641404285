package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// scratchDir is where a build keeps what must not get into its layer. It lies
// under /tmp, which no layer has.
const scratchDir = "/tmp/atoll-build"

// recipe is how one manager installs a list. Its version is part of the layer
// key: raise it when a change can alter the result.
type recipe struct {
	version int
	// probe runs the manager's cheapest command, to see if it is there.
	probe []string
	// env is added to the environment of all of the manager's commands.
	env []string
	// prepare, if set, runs before the install.
	prepare func(ctx context.Context, in *install) error
	// command is the install's arguments; the specs are appended.
	command []string
	// options, if set, are arguments that depend on the step. They stand before
	// the command's others, behind the tool's name.
	options func(Step) []string
	// shown, if set, stands in the log for the command: what a person would type.
	shown []string
	// tells says that the install tells about its downloads on its standard
	// output, or on descriptor 3, and shell that it needs that descriptor.
	tells, shell bool
	// check, if set, looks at the tree before it becomes a layer: whether the
	// manager used a file of the download cache that no index states now.
	check func(tree *os.Root, v *view) error
	// wanted finds what the install downloaded in the tree that it left.
	wanted func(w *witness, tree *os.Root) []wanted
	// each installs entry by entry: the calls are independent, and a failure
	// then belongs to exactly one entry.
	each bool
	// install, if set, installs the specs in place of the command.
	install func(ctx context.Context, in *install, r recipe, specs ...string) error
	// argument, if set, writes a spec as the tool wants it.
	argument func(spec) string
	// finish, if set, runs after the install.
	finish func(ctx context.Context, in *install) error
	// list asks the manager what is installed. Without it the install tells that.
	list     []string
	listFail bool // the listing may exit with another code than 0
	parse    func(out []byte) ([]installed, error)
	// diagnose, if set, asks the tool about one spec, in more words, after it
	// said that it found nothing; it may have hidden that nobody answered.
	diagnose []string
	// simulate, if set, are the arguments that try a spec alone without
	// installing it, for tools that do not say which one failed. With answers, a
	// spec that the tool knows has it print something.
	simulate []string
	answers  bool
	// provides reports whether an installed package is what an entry asked for.
	provides func(s spec, p installed) bool
}

// recipes by manager. The map is never changed.
var recipes = map[string]recipe{
	"apt": aptRecipe,
	"cargo": {
		version: 1,
		probe:   []string{"cargo", "--version"},
		env: []string{"CARGO_HOME=" + scratchDir + "/home/.cargo", "CARGO_TARGET_DIR=" + scratchDir + "/target",
			"CARGO_TERM_PROGRESS_WHEN=never", "CARGO_TERM_COLOR=never",
			// Without a lock file: the newest releases that this compiler can build.
			"CARGO_RESOLVER_INCOMPATIBLE_RUST_VERSIONS=fallback"},
		prepare: prepareCargo, wanted: cargoWanted,
		command: []string{"cargo", "install", "--root", "/usr/local", "--"}, each: true, argument: cargoArgument, install: installCargo,
		list: []string{"cargo", "install", "--list", "--root", "/usr/local"}, parse: parseCargoList,
	},
	"gem": {
		version: 2,
		probe:   []string{"gem", "--version"},
		prepare: prepareGem, wanted: gemWanted,
		// After -- gem takes flags for compilers, so the names go without it; the
		// grammar lets no name begin with a dash.
		command: []string{"gem", "install", "--remote", "--no-document", "--conservative", "--no-user-install", "--bindir", "/usr/local/bin"},
		list:    []string{"gem", "list", "--local"}, parse: parseGemList,
		simulate: []string{"gem", "install", "--explain", "--remote", "--no-document", "--conservative", "--no-user-install"},
	},
	"go": {
		version: 1,
		probe:   []string{"go", "version"},
		env: []string{"GOBIN=/usr/local/bin", "GOPATH=" + scratchDir + "/go", "GOMODCACHE=" + scratchDir + "/go/pkg/mod",
			"GOCACHE=" + scratchDir + "/go-build", "GOFLAGS=-modcacherw", "GOTELEMETRY=off", "GOTOOLCHAIN=auto"},
		prepare: prepareGo,
		command: []string{"go", "install"}, each: true, argument: goArgument,
		list: []string{"go", "version", "-m", "/usr/local/bin"}, parse: parseGoList, listFail: true,
		provides: goProvides, wanted: goWanted, check: checkGo,
	},
	"npm": {
		version: 2,
		probe:   []string{"npm", "--version"},
		env: []string{"NPM_CONFIG_PREFIX=/usr/local", "NPM_CONFIG_CACHE=" + scratchDir + "/npm", "NPM_CONFIG_FUND=false",
			"NPM_CONFIG_AUDIT=false", "NPM_CONFIG_UPDATE_NOTIFIER=false", "NPM_CONFIG_PROGRESS=false", "NPM_CONFIG_COLOR=false"},
		command: []string{"npm", "install", "-g", "--"}, tells: true, shell: true, wanted: npmWanted,
		simulate: []string{"npm", "view", "--"}, answers: true,
		provides: func(s spec, p installed) bool { return p.top && p.Name == s.name },
	},
	"pip": {
		version: 3,
		probe:   []string{"python3", "-m", "pip", "--version"},
		env: []string{"PIP_BREAK_SYSTEM_PACKAGES=1", "PIP_ROOT_USER_ACTION=ignore", "PIP_DISABLE_PIP_VERSION_CHECK=1",
			"PIP_NO_INPUT=1", "PIP_CACHE_DIR=" + scratchDir + "/pip", "PIP_PROGRESS_BAR=off", "PIP_NO_COLOR=1",
			// The same install gives the same bytes: with an epoch, byte code names its source by hash and not by time.
			"SOURCE_DATE_EPOCH=946684800", "PYTHONHASHSEED=0"},
		command: []string{"python3", "-c", hookText(pipHook), "install", "--"}, tells: true, wanted: pipWanted,
		shown:    []string{"python3", "-m", "pip", "install", "--"},
		diagnose: []string{"python3", "-m", "pip", "install", "-vv", "--dry-run", "--no-deps", "--only-binary", ":all:", "--retries", "0", "--"},
		simulate: []string{"python3", "-m", "pip", "install", "--dry-run", "--retries", "0", "--"},
		provides: func(s spec, p installed) bool { return pipCanonical(s.name) == pipCanonical(p.Name) },
	},
}

// patience is how long tools wait for a registry. The template's own
// environment may say otherwise.
var patience = []string{"PIP_DEFAULT_TIMEOUT=30", "PIP_RETRIES=2", "NPM_CONFIG_FETCH_RETRIES=2", "NPM_CONFIG_FETCH_RETRY_MINTIMEOUT=1000",
	"NPM_CONFIG_FETCH_RETRY_MAXTIMEOUT=5000", "NPM_CONFIG_FETCH_TIMEOUT=60000", "CARGO_NET_RETRY=2", "CARGO_HTTP_TIMEOUT=30"}

// boxEnv is the environment of every command of a build.
func boxEnv(base *Base, manager string) []string {
	env := append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, patience...)
	env = append(env, base.Env...)
	home := "/root"
	for _, kv := range base.Env {
		if v, ok := strings.CutPrefix(kv, "HOME="); ok {
			home = v
		}
		if v, ok := strings.CutPrefix(kv, "CARGO_HOME="); ok {
			env = append(env, "ATOLL_CARGO_HOME="+v)
		}
		if strings.HasPrefix(kv, "RUSTUP_HOME=") {
			env = append(env, "ATOLL_RUSTUP=set")
		}
	}
	if manager == "npm" {
		env = append(env, "ATOLL_NPM_HOOK="+hookText(npmHook))
	}
	env = append(env, "ATOLL_HOME="+home, "HOME="+scratchDir+"/home", "LANG=C.UTF-8", "LC_ALL=C.UTF-8", "TERM=dumb", "DEBIAN_FRONTEND=noninteractive")
	return append(env, recipes[manager].env...)
}

// prepareScript makes the scratch space and brings the template's own registry
// settings into the build's home, which is not the template's.
const prepareScript = `set -e
mkdir -p ` + scratchDir + `/home/.cargo ` + scratchDir + `/work
if [ -n "$ATOLL_NPM_HOOK" ]; then printf '%s' "$ATOLL_NPM_HOOK" > ` + npmHookFile + `; fi
cd "$ATOLL_HOME" 2>/dev/null || exit 0
for f in .npmrc .gemrc .pip .config/pip .config/go .cargo/config .cargo/config.toml; do
	if [ -e "$f" ]; then
		case "$f" in
		*/*) mkdir -p "$HOME/${f%/*}"; cp -R "$f" "$HOME/${f%/*}/" ;;
		*) cp -R "$f" "$HOME/" ;;
		esac
	fi
done
for f in config config.toml; do
	if [ -n "$ATOLL_CARGO_HOME" ] && [ -e "$ATOLL_CARGO_HOME/$f" ]; then cp "$ATOLL_CARGO_HOME/$f" "$HOME/.cargo/"; fi
done
if [ -z "$ATOLL_RUSTUP" ] && [ -d "$ATOLL_HOME/.rustup" ]; then ln -s "$ATOLL_HOME/.rustup" "$HOME/.rustup"; fi
`

// npmHookFile is where npm's process finds the hook.
const npmHookFile = scratchDir + "/hook.js"

// install is one attempt at one layer inside an open box.
type install struct {
	box   Box
	step  Step
	specs []spec
	env   []string
	out   *lineWriter
	say   func(text string) // the build's own words in the log
	probe bool              // the manager may be missing
	exit  BoxExit           // of the last command
	at    int               // index of the entry that is being installed by itself, or -1
	// offered is what the download cache has for this install; nil if nothing.
	offered *view
	caching bool    // downloads are kept for later builds
	witness witness // what the manager told of its downloads
}

// errTool says that a tool ended badly; what it said is in the output.
var errTool = errors.New("the tool failed")

// knownFailure is one that is known exactly, without a tool's words.
type knownFailure struct {
	kind   Kind
	phrase string
	index  int
	pkg    string
}

func (k *knownFailure) Error() string { return k.phrase }

// run performs the recipe: before is what the manager listed in the parent
// layer, or nil to ask it now. It returns what the layer adds, and before.
func (in *install) run(ctx context.Context, before []installed) (added []PackageVersion, listed []installed, err error) {
	r := recipes[in.step.Manager]
	in.at = -1
	if err := in.command(ctx, []string{"/bin/sh", "-c", prepareScript}, nil); err != nil {
		return nil, nil, err
	}
	if in.probe {
		if err := in.shownCommand(ctx, r.probe); err != nil {
			return nil, nil, missing(in.step.Manager)
		}
	}
	if before == nil && r.list != nil {
		if before, err = in.listing(ctx); err != nil {
			return nil, nil, err
		}
	}
	if r.prepare != nil {
		if err := r.prepare(ctx, in); err != nil {
			return nil, nil, err
		}
	}
	if err := in.entries(ctx, r); err != nil {
		return nil, nil, err
	}
	if r.finish != nil {
		if err := r.finish(ctx, in); err != nil {
			return nil, nil, err
		}
	}
	after := in.witness.installed
	if r.list != nil {
		if after, err = in.listing(ctx); err != nil {
			return nil, nil, err
		}
	}
	for _, p := range after {
		if r.list == nil && !p.fresh {
			before = append(before, p)
		}
	}
	added, err = in.verify(r, before, after)
	return added, before, err
}

func (in *install) entries(ctx context.Context, r recipe) error {
	argument := func(s spec) string {
		if r.argument != nil {
			return r.argument(s)
		}
		return s.text
	}
	if r.each {
		for i, s := range in.specs {
			in.at = i
			run := in.tool
			if r.install != nil {
				run = func(ctx context.Context, r recipe, specs ...string) error { return r.install(ctx, in, r, specs...) }
			}
			if err := run(ctx, r, argument(s)); err != nil {
				return err
			}
		}
		in.at = -1
		return nil
	}
	args := make([]string, len(in.specs))
	for i, s := range in.specs {
		args[i] = argument(s)
	}
	return in.tool(ctx, r, args...)
}

// tool runs the manager's own install of some specs.
func (in *install) tool(ctx context.Context, r recipe, specs ...string) error {
	shown := r.shown
	if shown == nil {
		shown = r.command
	}
	whole := func(command []string) []string {
		args := append(slices.Clone(command), specs...)
		if r.options != nil {
			args = slices.Insert(args, 1, r.options(in.step)...)
		}
		return args
	}
	in.say("$ " + strings.Join(whole(shown), " "))
	args := whole(r.command)
	if !r.tells {
		return in.command(ctx, args, nil)
	}
	if r.shell {
		args = append([]string{"/bin/sh", "-c", in.channelScript(), "sh"}, args...)
	}
	var told limitedBuffer
	err := in.command(ctx, args, &told)
	in.witness.hear(told.buf.Bytes())
	return err
}

// channelScript gives a tool standard output as descriptor 3, for what it tells,
// and standard error for what it prints.
func (in *install) channelScript() string {
	script := `exec 3>&1 1>&2; `
	if in.step.Manager == "npm" {
		script += `export ATOLL_NODE_OPTIONS="$NODE_OPTIONS" NODE_OPTIONS="$NODE_OPTIONS --require ` + npmHookFile + `"; unset ATOLL_NPM_HOOK; `
	}
	return `cd ` + scratchDir + `/work; ` + script + `exec "$@"`
}

// shownCommand runs one program and says so in the log.
func (in *install) shownCommand(ctx context.Context, args []string) error {
	in.say("$ " + strings.Join(args, " "))
	return in.command(ctx, args, nil)
}

// command runs one program; its output goes to the log, standard output to
// stdout instead if that is set. errTool if it does not exit with 0.
func (in *install) command(ctx context.Context, args []string, stdout *limitedBuffer) error {
	cmd := BoxCommand{Args: args, Env: in.env, Dir: scratchDir + "/work", Output: in.out}
	if args[0] == "/bin/sh" {
		cmd.Dir = "/"
	}
	if stdout != nil {
		cmd.Stdout = stdout
	}
	exit, err := in.box.Run(ctx, cmd)
	in.out.flush()
	if err != nil {
		return err
	}
	in.exit = exit
	if exit.Code != 0 || exit.Signal != "" {
		return errTool
	}
	return nil
}

func (in *install) listing(ctx context.Context) ([]installed, error) {
	r := recipes[in.step.Manager]
	var out limitedBuffer
	quiet := *in
	// What a listing says on standard error is no part of the build's log,
	// unless the listing fails.
	quiet.out = &lineWriter{emit: func(string) {}, now: time.Now}
	err := quiet.command(ctx, r.list, &out)
	in.exit = quiet.exit
	if err != nil && !(errors.Is(err, errTool) && r.listFail) {
		for _, l := range quiet.out.lines() {
			_, _ = in.out.Write([]byte(l + "\n"))
		}
		return nil, err
	}
	list, err := r.parse(out.buf.Bytes())
	if err != nil {
		return nil, fmt.Errorf("reading the packages that %s lists: %w", in.step.Manager, err)
	}
	if list == nil {
		list = []installed{}
	}
	return list, nil
}

// hidden asks the tool again about an entry that it did not find, and returns
// what it then says about the network.
func (in *install) hidden(ctx context.Context, index int) []string {
	r := recipes[in.step.Manager]
	if r.diagnose == nil {
		return nil
	}
	quiet := *in
	quiet.out = &lineWriter{emit: func(string) {}, now: time.Now}
	// Its exit code says nothing new.
	_ = quiet.command(ctx, append(slices.Clone(r.diagnose), in.specs[max(index, 0)].text), &limitedBuffer{tee: quiet.out})
	quiet.out.flush()
	var said []string
	for _, l := range quiet.out.lines() {
		if networkWords.words.MatchString(l) {
			said = append(said, strings.TrimSpace(l))
		}
	}
	return said
}

// verify holds the manager's listing against what was asked: some tools skip a
// package and exit with 0.
func (in *install) verify(r recipe, before, after []installed) ([]PackageVersion, error) {
	provides := r.provides
	if provides == nil {
		provides = func(s spec, p installed) bool { return s.name == p.Name }
	}
	requested := make([]bool, len(after))
	for i, s := range in.specs {
		found := false
		for j, p := range after {
			if provides(s, p) {
				requested[j], found = true, true
			}
		}
		if !found && !s.marker {
			return nil, &knownFailure{kind: KindInstallError, index: i, pkg: s.text,
				phrase: fmt.Sprintf("%s reported success but does not list %q", in.step.Manager, s.text)}
		}
	}
	old := map[string]bool{}
	for _, p := range before {
		old[p.id()] = true
	}
	added := []PackageVersion{}
	for j, p := range after {
		if old[p.id()] && !requested[j] {
			continue
		}
		p.Requested, p.present = requested[j], old[p.id()]
		added = append(added, p.PackageVersion)
		old[p.id()] = true
	}
	return added, nil
}

func missing(manager string) *knownFailure {
	return &knownFailure{kind: KindToolchainMissing, index: -1,
		phrase: fmt.Sprintf("the template has no %s: choose a template that has it, or list an apt package that brings it", toolName(manager))}
}

func toolName(manager string) string {
	if manager == "gem" {
		return "gem (Ruby)"
	}
	return manager
}

// limitedBuffer keeps the output of a listing; more than 32 MiB is an error. It
// embeds no buffer, whose other methods would get round the limit.
type limitedBuffer struct {
	buf bytes.Buffer
	tee *lineWriter // gets everything too, if set
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if b.tee != nil {
		_, _ = b.tee.Write(p)
	}
	if b.buf.Len()+len(p) > 32<<20 {
		return 0, errors.New("the listing is too long")
	}
	return b.buf.Write(p)
}
