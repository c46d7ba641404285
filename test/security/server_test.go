package security

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"

	"github.com/atoll-run/atoll/internal/egress"
)

// fixed resolves every name to one address.
type fixed struct{ addr netip.Addr }

func (f fixed) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return []netip.Addr{f.addr}, nil
}

// beServer serves one network until it is killed.
func beServer(dir string) {
	id, up := os.Getenv(serverVariable+"_ID"), netip.MustParseAddr(os.Getenv(serverVariable+"_UP"))
	g, err := egress.New(egress.Config{Dir: dir, Resolver: fixed{up}})
	if err != nil {
		fmt.Println("error:", err)
		return
	}
	p, err := egress.Compile(allModes()[os.Getenv(serverVariable+"_MODE")])
	if err != nil {
		fmt.Println("error:", err)
		return
	}
	path, err := g.Open(context.Background(), id, meta(id), p)
	if err != nil {
		fmt.Println("error:", err)
		return
	}
	fmt.Println(path)
	_, _ = io.ReadAll(os.Stdin)
}
