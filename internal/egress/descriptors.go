package egress

// Descriptors shares what the process may open among all for whom it opens
// something. Take tells whether the holder, a network's id, may have n more;
// Give returns them. Both may be called at the same time from everywhere.
type Descriptors interface {
	Take(holder string, n int64) bool
	Give(holder string, n int64)
}

// What things take at most while they last.
const (
	// slotDescriptors: the namespace, its five sockets, and what changing its rules
	// takes for a moment.
	slotDescriptors = 8
	// flowDescriptors: the sandbox's side, the upstream, and two pipes in which the
	// kernel moves the bytes. A question to the resolver, before, takes less.
	flowDescriptors = 6
	// udpFlowDescriptors: both sides; before them a question to the resolver.
	udpFlowDescriptors = 2
	// clientDescriptors: the connection of the server's own; before it a question
	// to the resolver.
	clientDescriptors = 2
	// lookupDescriptors: a question for records that is asked anew, and its repeat
	// over TCP.
	lookupDescriptors = 2
	// dnsConnDescriptors: a DNS connection of the sandbox.
	dnsConnDescriptors = 1
)

// plenty is for a gateway that nobody gave a budget.
type plenty struct{}

// Take implements Descriptors.
func (plenty) Take(string, int64) bool { return true }

// Give implements Descriptors.
func (plenty) Give(string, int64) {}
