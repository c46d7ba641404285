package egress

import "testing"

func BenchmarkMakePair(b *testing.B) {
	needRoot(b)
	for b.Loop() {
		p, err := makePair(512)
		if err != nil {
			b.Fatal(err)
		}
		p.close()
	}
}
