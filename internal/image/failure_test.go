package image

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"
)

// Words that tools say, as recorded; the cases that can be made cheaply are
// made for real elsewhere.
func TestClassify(t *testing.T) {
	tests := []struct {
		manager, output string
		kind            Kind
		pkg             string
	}{
		{"pip", "ERROR: Could not find a version that satisfies the requirement six==9 (from versions: 1.0, 1.1)\nERROR: No matching distribution found for six==9", KindVersionNotFound, "six"},
		{"pip", "src/x.c:1:10: fatal error: mysql.h: No such file or directory\nerror: command '/usr/bin/gcc' failed with exit code 1\nERROR: Failed building wheel for mysqlclient", KindInstallError, "mysqlclient"},
		{"pip", "FileNotFoundError: [Errno 2] No such file or directory: 'data.txt'\nERROR: Failed building wheel for six", KindInstallError, "six"}, // not ENOTFOUND
		{"pip", "gcc: fatal error: Killed signal terminated program cc1\nERROR: Failed building wheel for big", KindOutOfMemory, ""},
		{"pip", "RuntimeError: can't start new thread", KindTooManyProcesses, ""},
		{"pip", "WARNING: Retrying (Retry(total=0)) after connection broken by 'ReadTimeoutError(\"Read timed out.\")': /simple/x/\nERROR: No matching distribution found for x", KindRegistryUnreachable, ""},
		{"npm", "npm error code E404\nnpm error 404 Not Found - GET http://r.example.com/x - Not found\nnpm error 404  'x@*' is not in this registry.", KindPackageNotFound, "x"},
		{"npm", "npm error code E503\nnpm error 503 Service Unavailable - GET http://r.example.com/x", KindRegistryUnreachable, ""},
		{"npm", "npm error code 1\nnpm error path /usr/local/lib/node_modules/@a/b\nnpm error command failed", KindInstallError, "@a/b"},
		{"npm", "npm error code ENOSPC", KindDiskFull, ""},
		{"npm", "npm error code ENOTFOUND\nnpm error network request to http://r.example.com/x failed, reason: getaddrinfo ENOTFOUND r.example.com", KindRegistryUnreachable, ""},
		{"apt", "E: Unable to locate package nope", KindPackageNotFound, "nope"},
		{"apt", "E: Package 'nope' has no installation candidate", KindPackageNotFound, "nope"},
		{"apt", "The following packages have unmet dependencies:\nE: Unable to correct problems, you have held broken packages.", KindConflict, ""},
		{"apt", "Some packages could not be installed.\nE: Packages need to be removed but remove is disabled.", KindConflict, ""},
		{"apt", "dpkg: error processing package foo (--configure):\n installed foo package post-installation script subprocess returned error exit status 1", KindInstallError, "foo"},
		{"apt", "E: Failed to fetch http://deb.example.com/x  Could not connect to deb.example.com:80", KindRegistryUnreachable, ""},
		{"apt", "E: Failed to fetch http://deb.example.com/x  503  Service Unavailable [IP: 192.0.2.1 80]", KindRegistryUnreachable, ""},
		{"apt", "dpkg: error: failed to write: No space left on device", KindDiskFull, ""},
		{"cargo", "error: could not compile `big` (lib) due to 2 previous errors\nerror: failed to compile `big v1.0.0`, intermediate artifacts can be found at", KindInstallError, "big"},
		{"cargo", "error: cannot install package `first 0.26.0`, it requires rustc 1.88 or newer, while the currently active rustc version is 1.85.1\n`first 0.25.0` supports rustc 1.74", KindToolchainMissing, "first"},
		{"cargo", "error: failed to compile `second v1.0.0`, intermediate artifacts can be found at\n\nCaused by:\n  rustc 1.85.1 is not supported by the following packages:\n    second@2.0.0 requires rustc 1.88", KindToolchainMissing, "second"},
		{"pip", "error: uninstall-no-record-file\n\n× Cannot uninstall first 2.32.3\n╰─> The package's contents are unknown: no RECORD file was found for first.", KindConflict, "first"},
		{"cargo", "rustc: (signal: 9, SIGKILL: kill)\nerror: could not compile `big`", KindOutOfMemory, ""},
		{"cargo", "warning: spurious network error (2 tries remaining): [6] Could not resolve hostname\nerror: failed to get", KindRegistryUnreachable, ""},
		{"gem", "ERROR:  Could not find a valid gem 'nope' (>= 0) in any repository", KindPackageNotFound, "nope"},
		{"gem", "ERROR:  Could not find a valid gem 'rails' (= 99.0) in any repository", KindVersionNotFound, "rails"},
		{"gem", "ERROR:  Could not find a valid gem 'x' (>= 0), here is why:\n  Unable to download data from http://g.example.com/ - bad response Service Unavailable 503", KindRegistryUnreachable, ""},
		{"gem", "ERROR:  Error installing nokogiri:\n\tERROR: Failed to build gem native extension.", KindInstallError, "nokogiri"},
		{"go", "go: module example.com/x: reading http://p.example.com/example.com/x/@v/list: 404 Not Found", KindPackageNotFound, "example.com/x"},
		{"go", "go: example.com/x@v9.9.9: reading http://p.example.com/example.com/x/@v/v9.9.9.info: 404 Not Found", KindVersionNotFound, "example.com/x"},
		{"go", "go: example.com/x@latest: module example.com/x: Get \"http://p.example.com/\": dial tcp 192.0.2.1:80: connect: connection refused", KindRegistryUnreachable, ""},
	}
	for _, tt := range tests {
		e := evidence{manager: tt.manager, current: -1, exit: BoxExit{Code: 1}, lines: strings.Split(tt.output, "\n"),
			specs: []spec{{text: "first", name: "first"}, {text: "second", name: "second"}}}
		f := classify(e)
		if f.Kind != tt.kind || f.Package != tt.pkg || !strings.HasPrefix(f.Message, tt.manager+": ") || f.ExitCode != 1 {
			t.Errorf("%s: %q is %s %q: %s", tt.manager, tt.output, f.Kind, f.Package, f.Message)
		}
	}
}

// TestNpmCauses: the line that says why is told, not the last one.
func TestNpmCauses(t *testing.T) {
	for _, tt := range []struct {
		kind Kind
		want string
		said []string
	}{
		{KindToolchainMissing, "Not compatible with your version of node/npm: x@2.0.0 (another version of Node", []string{"npm error code EBADENGINE", "npm error engine Unsupported engine",
			"npm error engine Not compatible with your version of node/npm: x@2.0.0", "npm error notsup Required: {\"node\":\">=22\"}", "npm error notsup Actual:   {\"npm\":\"9.2.0\",\"node\":\"v20.19.2\"}"}},
		{KindConflict, `peer react@"^17.0.0" from x@1.0.0`, []string{"npm error code ERESOLVE", "npm error ERESOLVE unable to resolve dependency tree", "npm error Could not resolve dependency:",
			`npm error peer react@"^17.0.0" from x@1.0.0`, "npm error node_modules/x", "npm error Fix the upstream dependency conflict, or retry", "npm error this command with --force or --legacy-peer-deps"}},
		{KindInstallError, `Missing script: "prebuild" (a script of a package calls`, []string{`npm error Missing script: "prebuild"`, "npm error", "npm error To see a list of scripts, run:",
			"npm error path /usr/local/lib/node_modules/x", "npm error command failed", "npm error command sh -c npm run prebuild"}},
	} {
		said := append(tt.said, "npm error A complete log of this run can be found in: /tmp/x.log")
		f := classify(evidence{manager: "npm", current: -1, exit: BoxExit{Code: 1}, lines: said, specs: []spec{{text: "x", name: "x"}}})
		if f.Kind != tt.kind || !strings.Contains(f.Message, tt.want) {
			t.Errorf("%s is %s: %s", tt.said[0], f.Kind, f.Message)
		}
	}
}

// TestAbsent digs the cause out from under what a tool makes of it.
func TestAbsent(t *testing.T) {
	lines := []string{"Collecting x", "      x.c:1:10: fatal error: mysql.h: No such file or directory", "      compilation terminated."}
	for i := range 40 {
		lines = append(lines, fmt.Sprintf("      traceback %d", i))
	}
	lines = append(lines, "ERROR: Failed building wheel for x", "ERROR: Failed to build installable wheels for some pyproject.toml based projects (x)")
	f := classify(evidence{manager: "pip", current: -1, exit: BoxExit{Code: 1}, lines: lines, specs: []spec{{text: "x", name: "x"}}})
	if !strings.HasPrefix(f.Message, `pip: building "x" failed: x.c:1:10: fatal error: mysql.h: No such file or directory (a header`) {
		t.Error(f.Message)
	}
	if len(f.Tail) != tailLines || !strings.Contains(f.Tail[0], "mysql.h") || f.Tail[tailLines-1] != lines[len(lines)-1] {
		t.Errorf("tail is %q", f.Tail)
	}
	for line, kind := range map[string]Kind{
		"/usr/bin/ld: cannot find -lpq: No such file or directory":                         KindInstallError,
		"No package 'cairo' found":                                                         KindInstallError,
		"Package libffi was not found in the pkg-config search path.":                      KindInstallError,
		"error: linker `cc` not found":                                                     KindToolchainMissing,
		"error: command 'gcc' failed: No such file or directory":                           KindToolchainMissing,
		"unable to execute 'x86_64-linux-gnu-gcc': No such file or directory":              KindToolchainMissing,
		"FileNotFoundError: [Errno 2] No such file or directory: 'cmake'":                  KindToolchainMissing,
		"/bin/sh: 1: make: not found":                                                      KindToolchainMissing,
		"sh: line 1: g++: command not found":                                               KindToolchainMissing,
		"gyp ERR! stack Error: not found: make":                                            KindToolchainMissing,
		`cgo: C compiler "gcc" not found: exec: "gcc": executable file not found in $PATH`: KindToolchainMissing,
		"You have to install development tools first.":                                     KindToolchainMissing,
		"error: can't find Rust compiler":                                                  KindToolchainMissing,
		"FileNotFoundError: [Errno 2] No such file or directory: 'data.txt'":               "",
		"configure: maker: not found":                                                      "",
	} {
		if found, _, is := cause([]string{"before", line, "after"}); (found != "") != (kind != "") || kind != "" && is != kind {
			t.Errorf("%s: %q, %s", line, found, is)
		}
	}
	f = classify(evidence{manager: "cargo", current: 0, exit: BoxExit{Code: 101}, lines: []string{"error: linker `cc` not found", "error: could not compile `x`"}, specs: []spec{{text: "x", name: "x"}}})
	if f.Kind != KindToolchainMissing || f.Message != "cargo: compiling \"x\" failed: error: linker `cc` not found (a compiler or build tool that the template lacks; an apt package of the environment could bring it, such as build-essential)" {
		t.Errorf("%s: %s", f.Kind, f.Message)
	}
}

// TestSignals: a failure names the signal that ended the tool or what it ran.
func TestSignals(t *testing.T) {
	for _, tt := range []struct {
		exit    BoxExit
		line    string
		kind    Kind
		message string
	}{
		{BoxExit{Code: 137, Signal: "SIGKILL"}, "Collecting x", KindInstallError, `pip: installing failed for "x": pip was ended by SIGKILL: Collecting x`},
		{BoxExit{Code: 1}, "subprocess.CalledProcessError: Command '['cc1']' died with <Signals.SIGSEGV: 11>.", KindInstallError,
			`pip: installing failed for "x": a program that it ran was ended by SIGSEGV: subprocess.CalledProcessError: Command '['cc1']' died with <Signals.SIGSEGV: 11>.`},
		{BoxExit{Code: 1}, "gcc: fatal error: Killed signal terminated program cc1", KindOutOfMemory,
			`pip: the build is out of memory: a program that it ran was ended by SIGKILL: gcc: fatal error: Killed signal terminated program cc1`},
		{BoxExit{Code: 1}, "error: exit code 1", KindInstallError, `pip: installing failed for "x": error: exit code 1`},
		{BoxExit{Code: 1}, "error: Aborted by user", KindInstallError, `pip: installing failed for "x": error: Aborted by user`},
	} {
		f := classify(evidence{manager: "pip", current: -1, exit: tt.exit, lines: []string{tt.line}, specs: []spec{{text: "x", name: "x"}}})
		if f.Kind != tt.kind || f.Message != tt.message {
			t.Errorf("%q is %s: %s\nwant %s", tt.line, f.Kind, f.Message, tt.message)
		}
	}
	for line, want := range map[string]string{
		"  rustc --crate-name x (signal: 11, SIGSEGV: invalid memory reference)": "SIGSEGV",
		"npm error signal SIGABRT": "SIGABRT",
		"  │ exit code: -11":       "SIGSEGV",
		"g++: internal compiler error: Segmentation fault signal terminated program cc1plus": "SIGSEGV",
		"# example.com/x: compile: signal: killed":                                           "SIGKILL",
		"dpkg: x subprocess was killed by signal (Segmentation fault)":                       "SIGSEGV",
		"make: *** [Makefile:2: all] Segmentation fault (core dumped)":                       "SIGSEGV",
		"make[1]: *** [Makefile:2: all] Error 139":                                           "SIGSEGV",
		"/bin/sh: line 1:   123 Killed                  cc1":                                 "SIGKILL",
		"Bus error": "SIGBUS",
		"error: command '/usr/bin/gcc' failed with exit code 134": "SIGABRT",
	} {
		if got := ended(evidence{manager: "pip", lines: []string{"x", line}}); got != "a program that it ran was ended by "+want {
			t.Errorf("%s: %q, want %s", line, got, want)
		}
	}
}

func TestTail(t *testing.T) {
	var lines []string
	for i := range 50 {
		lines = append(lines, fmt.Sprint("line ", i))
	}
	if got := tailOf(lines); len(got) != 20 || got[19] != "line 49" {
		t.Errorf("tail is %q", got)
	}
	long := slices.Repeat([]string{strings.Repeat("x", 1000)}, 30)
	if got := tailOf(long); len(got) != 4 {
		t.Errorf("%d long lines", len(got))
	}
	if got := tailOf(nil); got == nil || len(got) != 0 {
		t.Errorf("tail of nothing is %v", got)
	}
}

func TestCleanLine(t *testing.T) {
	for in, want := range map[string]string{
		"plain\r\n":      "plain",
		"10%\r50%\r100%": "100%",
		"\x1b[31mred\x1b[0m \x1b]0;title\x07text":  "red text",
		"a\x00b\x07c\tд\xff":                       "abc д\ufffd",
		"hidden \u202etxet":                        "hidden txet",
		"\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\": "link",
		"\x1b": "",
	} {
		if got := cleanLine([]byte(in)); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

func FuzzCleanLine(f *testing.F) {
	f.Add([]byte("\x1b[31mred\x1b[0m\r\n"))
	f.Add([]byte("\x1b]0;x"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		got := cleanLine(raw)
		if !utf8.ValidString(got) || len(got) > maxLine+4 || strings.ContainsFunc(got, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
			t.Fatalf("%q became %q", raw, got)
		}
	})
}

// Listings come out of a sandbox: no parser may fail badly on them.
func FuzzListings(f *testing.F) {
	f.Add([]byte("jq\t1.7\tamd64\tinstalled\tx (= 1), y\n"))
	f.Add([]byte("ripgrep v14.1.0:\n    rg\n"))
	f.Add([]byte("rake (13.2.1, default: 13.1.0)\n"))
	f.Add([]byte("/usr/local/bin/x: go1.24\n\tpath\ta.b/x\n\tmod\ta.b/x\tv1\th1:x\n"))
	f.Add([]byte(`{"files":{"a.whl":["http://a.example.com/a.whl","00"]}}` + "\n" + `{"installed":[{"name":"six","version":"1","top":true}]}`))
	f.Add([]byte("name = \"a\"\nversion = \"1\"\nchecksum = \"00\"\n"))
	f.Add([]byte("e (" + strings.Repeat("\xa5", 400) + ")\n")) // a find: each byte became three
	f.Fuzz(func(t *testing.T, out []byte) {
		for m, r := range recipes {
			var w witness
			w.hear(out)
			list := w.installed
			if r.list != nil {
				list, _ = r.parse(out)
			}
			for _, p := range list {
				if cleanLine([]byte(p.Name)) != p.Name || len(p.Name) > 300 || len(p.Version) > 300 {
					t.Fatalf("%s: %q", m, p.Name)
				}
			}
		}
	})
}

func TestLog(t *testing.T) {
	var l, sink Log
	l.follow(&sink)
	var wg sync.WaitGroup
	var got []Line
	wg.Go(func() {
		for from := 0; ; {
			lines, next, done, changed := l.Read(from)
			got = append(got, lines...)
			from = next
			if done {
				return
			}
			<-changed
		}
	})
	for i := range 100 {
		l.add(Line{Time: time.Now(), Manager: "pip", Text: fmt.Sprint(i)})
	}
	l.close()
	wg.Wait()
	if len(got) != 100 || got[99].Text != "99" {
		t.Errorf("the follower has %d lines", len(got))
	}
	if lines, next, _, _ := sink.Read(98); len(lines) != 2 || next != 100 {
		t.Errorf("the sink has %v, %d", lines, next)
	}

	var long Log
	for i := range 20_000 {
		long.add(Line{Manager: "npm", Text: fmt.Sprintf("%05d %s", i, strings.Repeat("x", 94))})
	}
	lines, next, _, _ := long.Read(0)
	size := len(long.Text())
	if next != 20_000 || size > 2*(logHead+logTail) || lines[0].Text[:5] != "00000" || lines[len(lines)-1].Text[:5] != "19999" {
		t.Errorf("next %d, %d bytes", next, size)
	}
	if !slices.ContainsFunc(lines, func(l Line) bool { return strings.Contains(l.Text, "lines elided") }) {
		t.Error("nothing says that lines are missing")
	}
	if tail, next, _, _ := long.Read(19_999); len(tail) != 1 || next != 20_000 {
		t.Errorf("the end reads as %d lines, %d", len(tail), next)
	}
}
