package image

import (
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// signalWords are what tools say of a program that a signal ended. The group is
// the signal's name, its number, an exit code that shells make of it, or what
// the C library calls it.
var signalWords = regexp.MustCompile(`\(signal: \d+, (SIG[A-Z0-9]+)` + // rustc, cargo
	`|died with <Signals\.(SIG[A-Z0-9]+)` + // Python
	`|npm (?:ERR!|error) signal (SIG[A-Z0-9]+)` +
	`|exit code: -(\d+)$` + // pip, of the programs that it runs
	`|(?:exit status|exit code|status code|Error):? (13[2-9]|143)\b` + // of a shell
	`|(?i:\b(killed|segmentation fault|aborted|bus error|illegal instruction|floating point exception) signal terminated program)` + // gcc
	`|\bsignal: (killed|segmentation fault|aborted|bus error|illegal instruction)` + // go
	`|killed by signal \(([A-Za-z ]+)\)` + // dpkg
	`|(?:^|[:\]] +|\d +)(Killed|Segmentation fault|Aborted|Bus error|Illegal instruction|Floating point exception)(?: \(core dumped\))?(?: {2,}.*)?$`) // shells, make

// signalNames are the C library's words for signals, in lower case.
var signalNames = map[string]string{"killed": "SIGKILL", "segmentation fault": "SIGSEGV", "aborted": "SIGABRT", "bus error": "SIGBUS",
	"illegal instruction": "SIGILL", "floating point exception": "SIGFPE", "terminated": "SIGTERM"}

// ended says which signal ended the tool or, in the tool's words, a program that
// it ran; empty where none is told of.
func ended(e evidence) string {
	if e.exit.Signal != "" {
		return e.manager + " was ended by " + e.exit.Signal
	}
	for _, l := range e.lines {
		for i, word := range signalWords.FindStringSubmatch(l) {
			if name := signalName(word); i > 0 && name != "" {
				return "a program that it ran was ended by " + name
			}
		}
	}
	return ""
}

// signalName is the name of a signal that signalWords found, or empty.
func signalName(word string) string {
	if number, err := strconv.Atoi(word); err == nil {
		if number > 128 {
			number -= 128
		}
		return unix.SignalName(unix.Signal(number))
	}
	if strings.HasPrefix(word, "SIG") {
		return word
	}
	return signalNames[strings.ToLower(word)]
}

// toolchainWords are what tools say of a compiler or build tool that is not
// there.
var toolchainWords = regexp.MustCompile("error: linker .\\S+. not found" +
	`|error: command '[^']+' failed: No such file or directory|unable to execute '[^']+': No such file or directory` +
	`|No such file or directory: '(?:` + buildTools + `)'` +
	`|(?:^|[ :/])(?:` + buildTools + `): (?:command )?not found` +
	`|gyp ERR! .*not found: (?:` + buildTools + `)` +
	`|exec: "(?:` + buildTools + `)": executable file not found` +
	`|You have to install development tools first|mkmf\.rb can't find header files for ruby` +
	`|can't find Rust compiler|Cargo, the Rust package manager, is not installed` +
	`|CMake must be installed|No CMAKE_\w+_COMPILER could be found|Unknown compiler\(s\)`)

const buildTools = `gcc|cc|g\+\+|c\+\+|clang|gfortran|ld|make|cmake|ninja|meson|pkg-config|swig|rustc|cargo|go|git|node|perl`

// cause digs out from under the fact that a build failed what is behind it: a
// header or library that is not there, else a tool: what follows from it comes
// after it. It returns the line, what could help, and the kind of the failure
// that it makes; an empty line if there is none.
func cause(lines []string) (line, hint string, kind Kind) {
	for _, found := range []struct {
		words *regexp.Regexp
		hint  string
		kind  Kind
	}{
		{absentWords, "a header or library that an apt package of the environment could bring", KindInstallError},
		{npmEngine, "another version of Node than the template has", KindToolchainMissing},
		{npmScript, "a script of a package calls one that is not there", KindInstallError},
		{toolchainWords, "a compiler or build tool that the template lacks; an apt package of the environment could bring it, such as build-essential", KindToolchainMissing},
	} {
		for _, l := range lines {
			if found.words.MatchString(l) {
				return strings.TrimSpace(l), found.hint, found.kind
			}
		}
	}
	return "", "", KindInstallError
}
