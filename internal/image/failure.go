package image

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Kind says why a build failed. The list is closed.
type Kind string

// The kinds of failures.
const (
	KindPackageNotFound     Kind = "package_not_found"
	KindVersionNotFound     Kind = "version_not_found"
	KindConflict            Kind = "conflict"
	KindInstallError        Kind = "install_error"
	KindToolchainMissing    Kind = "toolchain_missing"
	KindRegistryUnreachable Kind = "registry_unreachable"
	KindHostRefused         Kind = "host_refused"
	KindTimeout             Kind = "timeout"
	KindDiskFull            Kind = "disk_full"
	KindOutOfMemory         Kind = "out_of_memory"
	KindTooManyProcesses    Kind = "too_many_processes"
	KindCancelled           Kind = "cancelled"
	KindInternal            Kind = "internal"
)

const (
	tailLines = 20
	tailBytes = 4 << 10
)

// Failure is how a build of one layer ended without a layer. Everyone who
// waited for it gets the same one. It holds no secret and no control codes.
type Failure struct {
	// Manager is whose install failed.
	Manager string `json:"manager"`
	// Kind is a word to branch on.
	Kind Kind `json:"kind"`
	// Package is the entry that failed, when it can be told, and Index its
	// position in the manager's list without duplicates; else empty and -1.
	Package string `json:"package,omitempty"`
	// Index is the entry's position in the manager's list without duplicates; -1 if it is not known.
	Index int `json:"index"`
	// ExitCode of the tool; -1 when none ended the build.
	ExitCode int `json:"exit_code"`
	// Attempts made, at least 1 unless nothing ran.
	Attempts int `json:"attempts"`
	// Message is one line for people.
	Message string `json:"message"`
	// Tail is the last output of the tool, at most 20 lines and 4 KiB.
	Tail []string `json:"tail"`

	cause error // for the server's own log, never shown
}

// Error returns the line for people.
func (f *Failure) Error() string { return f.Message }

// Unwrap returns what happened inside the server, for its log; often nil.
func (f *Failure) Unwrap() error { return f.cause }

// retryable failures may go away by themselves.
func (f *Failure) retryable() bool {
	return f.Kind == KindRegistryUnreachable || f.Kind == KindInternal && f.Attempts < 2
}

// tailOf cuts the end of a tool's output to what a reply may carry.
func tailOf(lines []string) []string {
	lines = lines[max(0, len(lines)-tailLines):]
	size := 0
	for i := len(lines) - 1; i >= 0; i-- {
		if size += len(lines[i]) + 1; size > tailBytes {
			return slices.Clone(lines[i+1:])
		}
	}
	return append([]string{}, lines...)
}

// rule recognises one kind of failure by a tool's own words. Where the phrase
// has a place for it, the first group that matched is the package's name.
type rule struct {
	kind   Kind
	phrase string // "%s" stands for the quoted name
	words  *regexp.Regexp
}

func words(kind Kind, phrase, expr string) rule {
	return rule{kind, phrase, regexp.MustCompile(expr)}
}

// commonRules are tried before the manager's own: a registry that does not
// answer makes tools say that they found nothing.
var commonRules = []rule{
	words(KindDiskFull, "the disk of the build is full", `(?i)no space left on device|ENOSPC|disk quota exceeded|not enough free space`),
	words(KindTooManyProcesses, "the build has too many processes", `(?i)resource temporarily unavailable.*(fork|thread|spawn)|(fork|spawn|thread|pthread_create).*(resource temporarily unavailable|EAGAIN)|can't start new thread|BlockingIOError: \[Errno 11\]`),
	words(KindOutOfMemory, "the build is out of memory", `(?i)cannot allocate memory|signal: 9, SIGKILL|out of memory allocating|JavaScript heap out of memory|Killed signal terminated program|^Killed$|^MemoryError`),
}

var networkWords = words(KindRegistryUnreachable, "the registry cannot be reached",
	`(?i)could not resolve (?:host|proxy|name|['"])|temporary failure (in name resolution|resolving)|name or service not known|no such host|getaddrinfo|EAI_AGAIN|\bENOTFOUND\b|`+
		`connection (refused|reset|timed out)|connect timed? ?out|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ERR_SOCKET_TIMEOUT|FETCH_ERROR|network is unreachable|no route to host|`+
		`could not connect|unable to connect|failed to connect|failed to establish a new connection|max retries exceeded|`+
		`read timed out|i/o timeout|TLS handshake|handshake failed|certificate (verify|signed)|x509: |SSL_ERROR|SSLError|`+
		`net::OpenTimeout|net::ReadTimeout|Errno::ECONN|SocketError|spurious network error|operation too slow|timeout was reached|\bstalled\b|IncompleteRead|`+
		`50[0234] +(internal server error|bad gateway|service unavailable|gateway time-?out|server error)|E50[0234]\b|status code 50[0234]|bad response (internal server error|bad gateway|service unavailable|gateway time-?out) 50[0234]|too many 50[0234] error|server returned 50[0234]|got 50[0234]|HTTP error 50[0234]|error: 50[0234]`)

// absentWords are what compilers, linkers and build systems say of a library
// that is not there. Tools bury it under the fact that a build failed.
var absentWords = regexp.MustCompile(`fatal error: \S+: No such file or directory|cannot find -l\S+|library not found for -l|` +
	`^No package '[^']+' found|Package '?[^' ]+'?,? (?:required by '[^']+'|was) not found|Package \S+ was not found in the pkg-config search path|` +
	`Could not find (?:the )?(?:directory of )?\S+ (?:library|headers?|installation)`)

// npmEngine and npmScript are npm's words for a cause that other lines follow.
var (
	npmEngine = regexp.MustCompile(`Not compatible with your version of node/npm: \S+|npm (?:ERR!|error) notsup Required: `)
	npmScript = regexp.MustCompile(`npm (?:ERR!|error) Missing script: `)
)

// managerRules recognise each tool's own words, the most telling first.
var managerRules = map[string][]rule{
	"apt": {
		words(KindVersionNotFound, "no such version or release of %s", `Version '[^']*' for '([^']+)' was not found|Release '[^']*' for '([^']+)' was not found`),
		words(KindPackageNotFound, "no package %s", `Unable to locate package (\S+)|Package '?([^' ]+)'? has no installation candidate|Couldn't find any package by (?:glob|regex) '([^']+)'`),
		words(KindConflict, "the packages do not fit together", `(?i)unmet dependencies|held broken packages|Packages need to be removed but remove is disabled|Unsatisfied dependencies|Conflicts:|Unable to satisfy dependencies`),
		words(KindInstallError, "installing %s failed", `dpkg: error processing (?:package|archive) (\S+)`),
	},
	"cargo": {
		words(KindToolchainMissing, "%s wants a newer Rust compiler than the template has", "cannot install package `([^` ]+)[^`]*`, it requires rustc|package `([^` ]+)[^`]*` cannot be built because it requires rustc|^ +([^ @]+)@[^ ]+ requires rustc"),
		words(KindPackageNotFound, "no crate %s", "could not find `([^`@]+)` in registry `[^`]*`(?: with version `\\*`)?$"),
		words(KindVersionNotFound, "no such version of %s", "could not find `([^`@]+)` in registry `[^`]*` with version|the crate `([^`]+)` exists .* but.*version"),
		words(KindInstallError, "%s has no program to install", "there is nothing to install in `([^` ]+)[^`]*`|no packages found with binaries"),
		words(KindConflict, "the dependencies of %s do not fit together", "failed to select a version for (?:the requirement )?`([^` ]+)"),
		words(KindInstallError, "compiling %s failed", "failed to compile `([^` ]+)|error: could not compile `([^`]+)`"),
	},
	"gem": {
		words(KindVersionNotFound, "no such version of %s", `Could not find a valid gem '([^']+)' \((?:=|~>|>=? ?[1-9]|<|!=)[^)]*\)`),
		words(KindPackageNotFound, "no gem %s", `Could not find a valid gem '([^']+)'`),
		words(KindConflict, "the gems do not fit together", `(?i)Unable to resolve dependency|conflicts? with|requires (?:Ruby|RubyGems) version`),
		words(KindInstallError, "building %s failed", `Error installing ([^:]+):`),
	},
	"go": {
		words(KindVersionNotFound, "no such version of %s", `([^ @]+)@[^ :]+: reading \S+/@v/\S+\.info: 4\d\d |([^ @]+)@[^ :]+: (?:invalid version|.*unknown revision|no matching versions|version .* invalid)|unknown revision`),
		words(KindPackageNotFound, "no package %s", `malformed module path "([^"]+)"|module ([^ :]+): (?:reading \S+: )?4\d\d |([^ @:]+)@[^ :]+: (?:reading .*: )?(?:404|410) |cannot find module providing package ([^ ;:]+)|module [^ ]+ found[^;]*but does not contain package ([^ ]+)|unrecognized import path "([^"]+)"|not found`),
		words(KindInstallError, "%s is not a program", `package ([^ ]+) is not a main package|([^ ]+): no packages? loaded|no Go files in`),
		words(KindConflict, "%s cannot be installed by itself", `The go\.mod file for the module providing named packages contains|requires go >= `),
	},
	"npm": {
		words(KindConflict, "the packages do not fit together", `npm (?:ERR!|error) +peer \S+ from \S+`),
		words(KindVersionNotFound, "no version matches %s", `ETARGET|No match found for version|No matching version found for (\S+?)\.?$`),
		words(KindPackageNotFound, "no package %s", `'((?:@[^/ ]+/)?[^@' ]+)(?:@[^']*)?' is not in this registry|404 Not Found - GET \S+ - Not found|E404|EINVALIDPACKAGENAME|EINVALIDTAGNAME`),
		words(KindConflict, "the packages do not fit together", `ERESOLVE|EEXIST|EBADENGINE.*error|Conflicting peer dependency`),
		words(KindInstallError, "an install script of %s failed", `npm (?:ERR!|error) path \S*/node_modules/((?:@[^/ ]+/)?[^/ ]+)$`),
	},
	"pip": {
		words(KindConflict, "%s of the template is in the way: pip cannot replace it", `Cannot uninstall '?([A-Za-z0-9._-]+)'?[ .]`),
		words(KindConflict, "the requirements do not fit together", `ResolutionImpossible|conflicting dependencies|Cannot install .* because these package versions`),
		words(KindVersionNotFound, "no matching version of %s", `Could not find a version that satisfies the requirement ([A-Za-z0-9._-]+)[^(]*\(from versions: [^n)]`),
		words(KindPackageNotFound, "no matching distribution for %s", `No matching distribution found for ([A-Za-z0-9._-]+)|Could not find a version that satisfies the requirement ([A-Za-z0-9._-]+)`),
		words(KindInstallError, "building %s failed", `Failed (?:to build|building wheel for) (?:installable wheels for some pyproject.toml based projects \()?'?([A-Za-z0-9._-]+)|metadata-generation-failed|subprocess-exited-with-error`),
	},
}

// evidence is what is known about a tool that did not succeed.
type evidence struct {
	manager  string
	specs    []spec
	current  int // index of the entry that was being installed by itself; -1 for the whole list
	exit     BoxExit
	lines    []string
	usage    BoxUsage
	refused  []Contact
	timedOut bool
	limit    string // the time limit, for people
}

// classify turns evidence into a failure. Limits come first, since a tool that
// hit one says all kinds of things; then a refused host, for the same reason.
func classify(e evidence) *Failure {
	f := &Failure{Manager: e.manager, Index: -1, ExitCode: e.exit.Code, Attempts: 1, Tail: tailOf(e.lines), Kind: KindInstallError}
	phrase, said, named := "installing failed", "", ""
	found := false
	match := func(rules ...rule) bool {
		for _, r := range rules {
			if line, name, ok := r.find(e.lines); ok {
				f.Kind, phrase, said, named, found = r.kind, r.phrase, line, name, true
				return true
			}
		}
		return false
	}
	network := func() bool { return match(networkWords) }
	switch {
	case e.usage.DiskFull:
		f.Kind, phrase = KindDiskFull, commonRules[0].phrase+", at the limit of packages.disk"
	case e.usage.OOMKills > 0:
		f.Kind, phrase = KindOutOfMemory, commonRules[2].phrase+", at the limit of packages.memory"
	case e.usage.PidsFull:
		f.Kind, phrase = KindTooManyProcesses, commonRules[1].phrase+", at the limit of packages.processes"
	case e.timedOut:
		f.Kind, phrase, f.ExitCode = KindTimeout, "not done after "+e.limit+", the limit of packages.manager_timeout", -1
	case match(commonRules...):
	case len(e.refused) > 0 && (network() || !match(managerRules[e.manager]...) || f.Kind == KindInstallError):
		f.Kind, named = KindHostRefused, ""
		phrase = refusedPhrase(e.manager, e.refused)
	case found && f.Kind != KindInstallError, network(), match(managerRules[e.manager]...):
	}
	if said == "" || f.Kind == KindInstallError {
		if line := lastError(e.lines); line != "" && (said == "" || len(line) > len(said)) {
			said = line
		}
	}
	said = strings.TrimSpace(said)
	if line, hint, kind := cause(e.lines); f.Kind == KindInstallError && line != "" {
		f.Kind, said = kind, line+" ("+hint+")"
		if !slices.Contains(f.Tail, line) {
			f.Tail = tailOf(append([]string{line}, f.Tail[min(1, max(0, len(f.Tail)-tailLines+1)):]...))
		}
	}
	if f.Kind == KindInstallError || f.Kind == KindOutOfMemory {
		if end := ended(e); end != "" && said != "" {
			said = end + ": " + said
		} else if end != "" {
			said = end
		}
	}
	f.blame(e, named)
	f.Message = sentence(f, phrase, said, len(e.specs))
	return f
}

func (r rule) find(lines []string) (line, name string, ok bool) {
	for _, l := range slices.Backward(lines) {
		m := r.words.FindStringSubmatch(l)
		if m == nil {
			continue
		}
		if !strings.Contains(r.phrase, "%s") {
			return l, "", true // the groups are only groups
		}
		for _, g := range m[1:] {
			if g != "" {
				return l, g, true
			}
		}
		if !ok {
			line, ok = l, true // go on: another line may name the package
		}
	}
	return line, "", ok
}

// lastError is the line that most likely says what went wrong.
func lastError(lines []string) string {
	for _, l := range slices.Backward(lines) {
		low := strings.ToLower(l)
		if strings.Contains(low, "a complete log of this run") || strings.Contains(low, "npm error a complete") {
			continue
		}
		if strings.HasPrefix(low, "error") || strings.HasPrefix(low, "e: ") || strings.Contains(low, "error:") || strings.Contains(low, "fatal") || strings.Contains(low, "failed") {
			return l
		}
	}
	if len(lines) > 0 {
		return lines[len(lines)-1]
	}
	return ""
}

// blame finds the entry of the list that the tool named.
func (f *Failure) blame(e evidence, named string) {
	at := e.current
	if at < 0 && len(e.specs) == 1 {
		at = 0
	}
	for i, s := range e.specs {
		if at < 0 && named != "" && sameName(e.manager, s, named) {
			at = i
		}
	}
	if at >= 0 && at < len(e.specs) {
		f.Package, f.Index = e.specs[at].text, at
	} else if named != "" {
		f.Package = named
	}
}

func sameName(manager string, s spec, named string) bool {
	named = strings.Trim(named, `'".,:`)
	switch manager {
	case "pip":
		return pipCanonical(s.name) == pipCanonical(named)
	case "apt":
		name, _, _ := strings.Cut(named, ":")
		return s.name == name
	case "npm":
		if at := strings.LastIndexByte(named, '@'); at > 0 {
			named = named[:at]
		}
		return s.name == named
	}
	return s.name == named
}

// refusedPhrase names what a build was kept from, and the line of configuration
// that opens it. No line opens a bare address: registries have names.
func refusedPhrase(manager string, refused []Contact) string {
	var hosts, entries []string
	for _, c := range refused {
		if len(hosts) == 5 || slices.Contains(hosts, c.Host) {
			continue
		}
		hosts = append(hosts, c.Host)
		if _, err := netip.ParseAddr(c.Host); err == nil {
			continue
		}
		at := c.Host
		if c.Port != 0 && c.Port != 80 && c.Port != 443 {
			at = net.JoinHostPort(c.Host, strconv.Itoa(c.Port))
		}
		entries = append(entries, `"+`+at+`"`)
	}
	phrase := "the build was kept from " + strings.Join(hosts, ", ") + ": only the template's registries can be reached"
	if len(entries) == 0 {
		return phrase + ", by their names"
	}
	return phrase + fmt.Sprintf(`; to allow it, the configuration needs the line registries: {"*": {%s: [%s]}}, and atoll reload`, manager, strings.Join(entries, ", "))
}

// sentence writes the line for people.
func sentence(f *Failure, phrase, said string, total int) string {
	name := f.Package
	if strings.Contains(phrase, "%s") {
		if name == "" {
			phrase = strings.ReplaceAll(phrase, "%s", fmt.Sprintf("one of %d packages", total))
		} else {
			phrase = strings.ReplaceAll(phrase, "%s", fmt.Sprintf("%q", name))
		}
	} else if (f.Kind == KindInstallError || f.Kind == KindToolchainMissing) && name != "" {
		phrase += fmt.Sprintf(" for %q", name)
	} else if (f.Kind == KindInstallError || f.Kind == KindToolchainMissing) && total > 1 {
		phrase += fmt.Sprintf(" for one of %d packages", total)
	}
	line := f.Manager + ": " + phrase
	if said != "" {
		line += ": " + said
	}
	if len(line) > 1000 {
		line = strings.ToValidUTF8(line[:1000], "") + "…"
	}
	return line
}
