package security

// withoutCase says, for numbers that have no case here, why, and what shows them
// instead. "Partly" and "not shown" mean what they say.
func withoutCase() map[string]string {
	const builder = "needs real registries, which this internet has not: "
	return map[string]string{
		"E197": "the server's, not the gateway's; policy is compiled at session create. Not shown by a test of its own",
		"E198": "the server's, not the gateway's; a session reads its environment once, in one transaction. Not shown under a race",
		"E201": "no sandbox is made: internal/httpapi, the sessions' table about `allow_mcp_servers`",
		"E202": "the server's: a sandbox keeps the registries it was made with. Not shown by a test of its own",
		"E203": "files need no network: test/e2e TestFiles. Repositories and memory are not there yet",
		"E214": "internal/egress TestE214OpenFails (names taken, half-made networks). A kernel without nf_tables or veth: not shown",
		"E220": "nobody outside of the gateway has an unclaimed slot: internal/egress TestE220Unclaimed",
		"E221": "would starve the tests beside it. Connection and rate limits: internal/egress TestLimits, TestE233HalfOpen. Descriptors and conntrack: not shown",
		"E223": "partly: the server's API on any address is E014 and E017. That no file of the server is in a sandbox follows from its root, which holds layers only",
		"E228": "the clock of a test machine is not set. That ids sort when it steps back: internal/egress, `journal.id`",
		"E235": "timings are not asserted in tests; make bench measures",
		"E271": builder + "test/e2e TestLayersAllManagers",
		"E273": builder + "test/e2e TestLayersFail, TestBuildFails",
		"E277": "the builder's environment holds no key: test/e2e, partly",
		"E278": builder + "not shown by a test of its own; E276 holds the address",
		"E279": builder + "test/e2e, the mirrored template of TestLayersFail, partly",
		"E280": builder + "internal/image TestRegistryParsers, TestLearnSlim",
		"E290": "the command line's: test/e2e TestCommandEgress",
		"E293": "the API's: internal/httpapi TestBuildsAndEgress",
	}
}

// onePlace says, for cases that run in one place, why.
func onePlace() map[string]string {
	return map[string]string{}
}
