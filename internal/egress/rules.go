package egress

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const tableName = "atoll"

// installRules installs the rules of a gateway namespace, in which the calling
// thread is. It is one transaction: with replace, the old set stands until the
// whole new one does. The rules deliver traffic to the stub and the gateway;
// without them nothing is delivered anywhere, since the namespace has no route.
func installRules(limits Limits, replace bool) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	for _, family := range []nftables.TableFamily{nftables.TableFamilyNetdev, nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		t := &nftables.Table{Family: family, Name: tableName}
		if replace {
			c.AddTable(t) // so that deleting works where there is none
			c.DelTable(t)
		}
		c.AddTable(t)
		r := ruleset{c, t}
		switch family {
		case nftables.TableFamilyNetdev:
			r.ingress()
		case nftables.TableFamilyIPv4:
			r.redirect()
			r.captureUDP()
			r.localOnly(limits)
		case nftables.TableFamilyIPv6:
			// IPv6 is disabled and dropped at ingress; this is the third lock.
			r.chain("drop6", nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, nftables.ChainTypeFilter, "")
		}
	}
	return c.Flush()
}

type ruleset struct {
	conn  *nftables.Conn
	table *nftables.Table
}

// chain adds a base chain with policy drop; NAT chains cannot drop.
func (r ruleset) chain(name string, hook *nftables.ChainHook, prio *nftables.ChainPriority, kind nftables.ChainType, device string) *nftables.Chain {
	policy := nftables.ChainPolicyDrop
	if kind == nftables.ChainTypeNAT || prio == nftables.ChainPriorityMangle || r.table.Family == nftables.TableFamilyIPv4 && prio == nftables.ChainPriorityRaw {
		policy = nftables.ChainPolicyAccept
	}
	return r.conn.AddChain(&nftables.Chain{
		Name: name, Table: r.table, Hooknum: hook, Priority: prio, Type: kind, Policy: &policy, Device: device,
	})
}

func (r ruleset) rule(c *nftables.Chain, parts ...[]expr.Any) {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	r.conn.AddRule(&nftables.Rule{Table: r.table, Chain: c, Exprs: all})
}

// ingress lets in ARP and IPv4 from the sandbox's own address to somewhere that
// is not this machine or everybody.
func (r ruleset) ingress() {
	c := r.chain("ingress", nftables.ChainHookIngress, nftables.ChainPriorityFilter, nftables.ChainTypeFilter, gatewayLink)
	r.rule(c, etherType(unix.ETH_P_ARP), verdictOf(expr.VerdictAccept))
	r.rule(c, etherType(unix.ETH_P_IP), inRange(16, "127.0.0.0/8"), verdictOf(expr.VerdictDrop))
	r.rule(c, etherType(unix.ETH_P_IP), inRange(16, "224.0.0.0/3"), verdictOf(expr.VerdictDrop))
	r.rule(c, etherType(unix.ETH_P_IP), inRange(12, sandboxAddress+"/32"), verdictOf(expr.VerdictAccept))
}

// redirect brings every TCP connection to the gateway and every DNS question,
// to whatever server, to the stub.
func (r ruleset) redirect() {
	c := r.chain("redirect", nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest, nftables.ChainTypeNAT, "")
	r.rule(c, protocol(unix.IPPROTO_TCP), destPort(dnsPort), redirectTo(dnsPort))
	r.rule(c, protocol(unix.IPPROTO_UDP), destPort(dnsPort), redirectTo(dnsPort))
	r.rule(c, protocol(unix.IPPROTO_TCP), redirectTo(gatewayPort))
}

const (
	relayMark = 0x61 // of datagrams on their way to the relay; the policy route knows it
	replyMark = 0x62 // of what the relay sends to the sandbox

	relayChain = "relay"
)

// captureUDP brings all other UDP to the relay's socket, address and port as
// they were, and answers what does not get there with port-unreachable at once.
// It is not tracked: a flood of datagrams takes no memory of the kernel's, and
// an answer that comes late is an answer.
func (r ruleset) captureUDP() {
	raw := r.chain("untracked", nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, nftables.ChainTypeFilter, "")
	r.rule(raw, protocol(unix.IPPROTO_UDP), portIsNot(dnsPort), []expr.Any{&expr.Notrack{}})
	out := r.chain("untracked-out", nftables.ChainHookOutput, nftables.ChainPriorityRaw, nftables.ChainTypeFilter, "")
	r.rule(out, mark(replyMark), []expr.Any{&expr.Notrack{}})

	relay := r.conn.AddChain(&nftables.Chain{Name: relayChain, Table: r.table})
	c := r.chain("udp", nftables.ChainHookPrerouting, nftables.ChainPriorityMangle, nftables.ChainTypeFilter, "")
	r.rule(c, protocol(unix.IPPROTO_UDP), portIsNot(dnsPort), []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: relayChain}})
	r.rule(c, protocol(unix.IPPROTO_UDP), portIsNot(dnsPort), reject(unix.NFT_REJECT_ICMP_UNREACH, icmpPortUnreachable))
	r.relayAt(relay, refusedDatagrams)
}

const (
	refusedDatagrams = 100    // per second, brought to the process so that it records them; the kernel refuses the rest alone
	relayedDatagrams = 50_000 // per second, from one sandbox
)

// relayAt delivers at most so many datagrams a second to the relay's socket.
// Without the socket nothing is delivered, and the next rule refuses.
func (r ruleset) relayAt(c *nftables.Chain, perSecond uint64) {
	r.rule(c, protocol(unix.IPPROTO_UDP),
		[]expr.Any{&expr.Limit{Type: expr.LimitTypePkts, Rate: perSecond, Burst: uint32(perSecond), Unit: expr.LimitTimeSecond}},
		[]expr.Any{
			&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(relayMark)},
			&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
			&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(relayPort)},
			&expr.TProxy{Family: unix.NFPROTO_IPV4, TableFamily: unix.NFPROTO_IPV4, RegPort: 1},
		},
		verdictOf(expr.VerdictAccept))
}

// setRelay changes how much gets to the relay, in the gateway namespace in which
// the calling thread is.
func setRelay(all bool) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	t := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: tableName}
	relay := &nftables.Chain{Name: relayChain, Table: t}
	c.FlushChain(relay)
	perSecond := uint64(refusedDatagrams)
	if all {
		perSecond = relayedDatagrams
	}
	ruleset{c, t}.relayAt(relay, perSecond)
	return c.Flush()
}

// localOnly accepts the services and what answers them.
func (r ruleset) localOnly(limits Limits) {
	// The process counts too, and says in a record what it refuses; the kernel's
	// count is the wall behind it and stands a little farther out.
	connections := limits.Connections + limits.Connections/8 + 16
	in := r.chain("input", nftables.ChainHookInput, nftables.ChainPriorityFilter, nftables.ChainTypeFilter, "")
	r.rule(in, protocol(unix.IPPROTO_TCP), ctState(expr.CtStateBitNEW),
		[]expr.Any{&expr.Connlimit{Count: uint32(connections), Flags: expr.NFT_CONNLIMIT_F_INV}},
		reject(unix.NFT_REJECT_TCP_RST, 0))
	r.rule(in, protocol(unix.IPPROTO_TCP), destPort(gatewayPort), verdictOf(expr.VerdictAccept))
	r.rule(in, protocol(unix.IPPROTO_TCP), destPort(dnsPort), verdictOf(expr.VerdictAccept))
	// Each question from a new port takes an entry of connection tracking for
	// half a minute, whose memory is the host's.
	questions := uint64(2*limits.DNSRate) + 1
	r.rule(in, protocol(unix.IPPROTO_UDP), mark(relayMark), verdictOf(expr.VerdictAccept))
	r.rule(in, protocol(unix.IPPROTO_UDP), ctState(expr.CtStateBitNEW),
		[]expr.Any{&expr.Limit{Type: expr.LimitTypePkts, Rate: questions, Burst: uint32(questions), Unit: expr.LimitTimeSecond, Over: true}},
		verdictOf(expr.VerdictDrop))
	r.rule(in, protocol(unix.IPPROTO_UDP), destPort(dnsPort), verdictOf(expr.VerdictAccept))
	r.chain("forward", nftables.ChainHookForward, nftables.ChainPriorityFilter, nftables.ChainTypeFilter, "")
	out := r.chain("output", nftables.ChainHookOutput, nftables.ChainPriorityFilter, nftables.ChainTypeFilter, "")
	r.rule(out, ctState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), verdictOf(expr.VerdictAccept))
	r.rule(out, mark(replyMark), verdictOf(expr.VerdictAccept))
	// The kernel's answers to datagrams that are not tracked.
	r.rule(out, protocol(unix.IPPROTO_ICMP), icmpUnreachable(), verdictOf(expr.VerdictAccept))
}

const icmpPortUnreachable = 3

func equals(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }

func etherType(t uint16) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1}, equals(binaryutil.BigEndian.PutUint16(t))}
}

func protocol(p byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equals([]byte{p})}
}

func port() expr.Any {
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
}

func destPort(p uint16) []expr.Any {
	return []expr.Any{port(), equals(binaryutil.BigEndian.PutUint16(p))}
}

func mark(m uint32) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}, equals(binaryutil.NativeEndian.PutUint32(m))}
}

// icmpUnreachable matches type 3, destination unreachable.
func icmpUnreachable() []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1}, equals([]byte{3})}
}

func portIsNot(p uint16) []expr.Any {
	return []expr.Any{port(), &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binaryutil.BigEndian.PutUint16(p)}}
}

// inRange matches the IPv4 address at this offset of the header.
func inRange(offset uint32, text string) []expr.Any {
	p := netip.MustParsePrefix(text)
	addr := p.Masked().Addr().As4()
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4, Xor: []byte{0, 0, 0, 0},
			Mask: binaryutil.BigEndian.PutUint32(^uint32(0) << (32 - p.Bits())),
		},
		equals(addr[:]),
	}
}

func ctState(bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: binaryutil.NativeEndian.PutUint32(0),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0, 0, 0, 0}},
	}
}

func redirectTo(p uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(p)},
		&expr.Redir{RegisterProtoMin: 1, Flags: unix.NF_NAT_RANGE_PROTO_SPECIFIED},
	}
}

func reject(kind uint32, code uint8) []expr.Any {
	return []expr.Any{&expr.Reject{Type: kind, Code: code}}
}

func verdictOf(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k}} }
