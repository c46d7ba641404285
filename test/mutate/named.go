package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
)

// named is a change that is made in every run. It is written as the source text
// that it replaces, not as a place, and has to match the code exactly once: who
// changes the line later hears that the change does not fit any more, and writes
// it anew.
type named struct {
	name   string // what the change breaks, in words
	file   string // from the root of the repository
	within string // the function, or method without its receiver; empty: anywhere in the file
	old    string // the source that is replaced; any white space matches any other
	new    string // what stands there instead
	test   string // the test that must find it
	pkg    string // the directory of the test; empty: the file's
}

// namedChanges are bounds and checks that once could be taken away without a
// test that noticed.
func namedChanges() []named {
	const never = "false"
	return []named{
		{
			name: "E049: a million DNS connections of a session", file: "internal/egress/slot.go", within: "admitDNS",
			old: "const most = 16", new: "const most = 1_000_000", test: "TestE049ConnectionLimit",
		},
		{
			name: "E187: no time limit of the guard for all that it asks", file: "internal/egress/guard.go", within: "lookup",
			old: "context.WithTimeout(ctx, g.resolve)", new: "context.WithCancel(ctx)", test: "TestE187OwnTimeLimit",
		},
		{
			name: "E187: no time limit of the guard for one question", file: "internal/egress/guard.go", within: "askAgain",
			old: "context.WithTimeout(ctx, g.resolve/resolveTries)", new: "context.WithCancel(ctx)", test: "TestE187OwnTimeLimit",
		},
		{
			name: "E191: the kernel is not asked where an address leads", file: "internal/egress/guard.go", within: "checkRoute",
			old: "err := g.host.kernel.leadsOut(addr, protocol, port)", new: "err := error(nil)", test: "TestE191RoutesWithoutGateway",
		},
		{
			name: "E192: no look at the address that the network's NAT64 reaches", file: "internal/egress/guard.go", within: "check",
			old: "for _, a := range g.nat64.reached(addr)", new: "for _, a := range g.nat64.reached(addr)[:1]", test: "TestE192OperatorsTranslator",
		},
		{
			name: "the relay's old rules stay under a new policy", file: "internal/egress/rules.go", within: "setRelay",
			old: "c.FlushChain(relay)", new: "", test: "TestRelayRules",
		},
		{
			name: "the relay's rules are never sent to the kernel", file: "internal/egress/rules.go", within: "setRelay",
			old: "return c.Flush()", new: "return nil", test: "TestRelayRules",
		},
		{
			name: "UDP goes on without a policy", file: "internal/egress/udp.go", within: "startUDP",
			old: "if st == nil {", new: "if " + never + " {", test: "TestUDPWithoutPolicy",
		},
		{
			name: "UDP without a policy is not answered", file: "internal/egress/udp.go", within: "startUDP",
			old: "if st == nil { s.unreachable(key)", new: "if st == nil {", test: "TestUDPWithoutPolicy",
		},
		{
			name: "no limit of a network's clients", file: "internal/egress/client.go", within: "addClient",
			old: "len(all) >= maxClients", new: never, test: "TestClientLimit",
		},
		{
			name: "a million clients of a network", file: "internal/egress/client.go",
			old: "maxClients = 64 ", new: "maxClients = 1_000_000 ", test: "TestClientLimit",
		},
		{
			name: "an end while a connection is dialled is not heard", file: "internal/egress/connection.go", within: "connected",
			old: "if ended != \"\" {", new: "if " + never + " {", test: "TestConnectionEnd",
		},
		{
			name: "a connection that is ended from outside is not recorded", file: "internal/egress/connection.go", within: "end",
			old: "if tell {", new: "if " + never + " {", test: "TestConnectionEnd",
		},
		{
			name: "a connection that is ended from outside is recorded twice", file: "internal/egress/connection.go", within: "record",
			old: "if told {", new: "if told && " + never + " {", test: "TestConnectionEnd",
		},
		{
			name: "a connection ends from outside after its own end", file: "internal/egress/connection.go", within: "over",
			old: "c.dialed = netip.Addr{}", new: "", test: "TestConnectionEnd",
		},
		{
			name: "no new look at where an open connection's bytes go", file: "internal/egress/connection.go", within: "allowed",
			old: "return !dialed.IsValid() || c.gateway.guard.check(c.host, dialed, c.dest.Port()) == nil", new: "return dialed.IsValid() || true", test: "TestConnectionAllowed",
		},
		{
			name: "datagrams under every mode", file: "internal/egress/connection.go", within: "decide",
			old: "c.protocol == \"udp\"", new: never, test: "TestConnectionUDP",
		},
		{
			name: "E256: port 25 is open", file: "internal/egress/operator.go", within: "mailRefused",
			old: "port == mailPort &&", new: never + " &&", test: "TestE256Port25",
		},
		{
			name: "E256: an exemption for port 25 holds at any address", file: "internal/egress/operator.go", within: "mailRefused",
			old: "e.cidr.Contains(addr)", new: "true", test: "TestE256Port25",
		},
		{
			name: "E256: the guard does not ask about port 25", file: "internal/egress/guard.go", within: "check",
			old: "r.mailRefused(host, addr.Unmap(), port)", new: never, test: "TestE256Port25",
		},
		{
			name: "E085: nonsense under another number is not sent", file: "internal/egress/echkeys.go", within: "heedsNumbers",
			old: "err != nil || !goesOn", new: "err != nil || false && goesOn", test: "TestE085OtherNumber",
		},
		{
			name: "E085: a key that the server does not have says something", file: "internal/egress/echkeys.go", within: "heedsNumbers",
			old: "err != nil || goesOn", new: "err != nil || false && goesOn", test: "TestE085OtherNumber",
		},
		{
			name: "no sample of a builder's use after a run", file: "internal/control/box.go", within: "Run",
			old: "b.sample(context.WithoutCancel(ctx))", new: "", test: "TestBoxUsageAfterRun",
		},
		{
			name: "a million events wait for a session", file: "internal/control/send.go",
			old: "maxQueued = 1000", new: "maxQueued = 1_000_000", test: "TestQueueLimits",
		},
		{
			name: "no limit of waiting events", file: "internal/control/send.go", within: "checkQueue",
			old: "len(queued)+len(more) > maxQueued", new: never, test: "TestQueueLimits",
		},
		{
			name: "any number of bytes waits for a session", file: "internal/control/send.go",
			old: "maxQueuedBytes = 64 << 20", new: "maxQueuedBytes = 64 << 40", test: "TestQueueLimits",
		},
		{
			name: "no limit of the bytes of waiting events", file: "internal/control/send.go", within: "checkQueue",
			old: "size > maxQueuedBytes", new: never, test: "TestQueueLimits",
		},
		{
			name: "nobody asks for the limits of the queue", file: "internal/control/send.go", within: "decide",
			old: "checkQueue(rec.ID, queued, change.Queue); err != nil", new: "checkQueue(rec.ID, queued, change.Queue); false && err != nil", test: "TestQueueIsFull",
		},
		{
			name: "any number of events in a request", file: "internal/control/send.go", within: "checkSend",
			old: "n > api.MaxSendEvents", new: never, test: "TestSendLimits",
		},
	}
}

// locate finds the one place that a named change fits.
func (m named) locate() (change, error) {
	source, err := os.ReadFile(filepath.FromSlash(m.file))
	if err != nil {
		return change{}, err
	}
	start, end, err := m.region(source)
	if err != nil {
		return change{}, err
	}
	found := m.pattern().FindAllIndex(source[start:end], -1)
	if len(found) != 1 {
		return change{}, fmt.Errorf("%s in %s matches %d places, not one: write the change anew for what the code is now, in test/mutate/named.go", oneLine(m.old), m.where(), len(found))
	}
	from, to := start+found[0][0], start+found[0][1]
	line := 1 + strings.Count(string(source[:from]), "\n")
	return change{m.file, line, from, to, m.new, oneLine(string(source[from:to]))}, nil
}

// dir is the directory of the change's test.
func (m named) dir() string {
	if m.pkg != "" {
		return m.pkg
	}
	return path.Dir(m.file)
}

func (m named) where() string {
	if m.within == "" {
		return m.file
	}
	return m.file + ", " + m.within
}

// pattern matches the old source whatever white space stands in it.
func (m named) pattern() *regexp.Regexp {
	var parts []string
	for _, word := range strings.Fields(m.old) {
		parts = append(parts, regexp.QuoteMeta(word))
	}
	text := strings.Join(parts, `\s+`)
	if strings.HasSuffix(m.old, " ") {
		text += `\s`
	}
	return regexp.MustCompile(text)
}

// region is the part of the file where the change has to be.
func (m named) region(source []byte) (start, end int, err error) {
	if m.within == "" {
		return 0, len(source), nil
	}
	files := token.NewFileSet()
	parsed, err := parser.ParseFile(files, m.file, source, parser.SkipObjectResolution)
	if err != nil {
		return 0, 0, err
	}
	for _, d := range parsed.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Name.Name == m.within {
			if end > 0 {
				return 0, 0, fmt.Errorf("%s has two functions %s", m.file, m.within)
			}
			start, end = files.Position(f.Pos()).Offset, files.Position(f.End()).Offset
		}
	}
	if end == 0 {
		return 0, 0, fmt.Errorf("%s has no function %s", m.file, m.within)
	}
	return start, end, nil
}
