// Package control decides: what an environment, an agent or a session may be,
// who may do what to it, and which sandbox, network and layers it gets.
//
// It knows no SQL and no HTTP. The store, the sandbox engine, the egress
// gateway and the image builder are reached through interfaces that this
// package declares or through their contract types. Every error that a caller
// may see is a [Fault]; anything else is internal and reaches a reply only as
// "internal error". After a crash the engine's list of sandboxes is the truth
// and the store is the intent: [Service.Reconcile] makes the two agree.
package control
