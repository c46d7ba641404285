package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// earlyServer is a TLS server that takes early data, which Go's does not. What it
// was sent is in its output.
type earlyServer struct{ out syncBuffer }

func newEarlyServer(t *testing.T, address string) *earlyServer {
	t.Helper()
	program, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatal(err)
	}
	certificate, _ := siteCertificate(t)
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "s_server", "-accept", address, "-tls1_3", "-early_data",
		"-cert", write("cert.pem", "CERTIFICATE", certificate.Certificate[0]), "-key", write("key.pem", "PRIVATE KEY", key))
	s := &earlyServer{}
	cmd.Stdout, cmd.Stderr = &s.out, &s.out
	in, err := cmd.StdinPipe() // it ends with its input
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	waitFor(t, 30*time.Second, "openssl to listen", func() bool {
		c, err := tls.DialWithDialer(&net.Dialer{Timeout: time.Second}, "tcp", address, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
	return s
}

// earlyScript shakes hands twice: for a ticket, and with it and early data. Each
// client waits for what it came for and says goodbye then.
const earlyScript = `cd /tmp
printf 'early words\n' > early
until_there() { for i in $(seq 600); do grep -qs "$2" "$1" && break; sleep 0.05; done; echo Q; }
until_there session BEGIN | openssl s_client -connect early.example.com:443 -servername early.example.com -tls1_3 -sess_out session >first 2>&1
until_there second 'Early data was' | openssl s_client -connect early.example.com:443 -servername early.example.com -tls1_3 -sess_in session -early_data early >second 2>&1
grep 'Early data was' second || cat first second`

// earlyData has a session send early data and asserts that it arrived as such.
func (s *server) earlyData(t *testing.T, session string, upstream *earlyServer) {
	t.Helper()
	if got := s.exec(session, earlyScript); !strings.Contains(got.Stdout, "Early data was accepted") {
		t.Errorf("the client says %+v", got)
	}
	if out := upstream.out.String(); !strings.Contains(out, "early words") {
		t.Errorf("the server says %s", out)
	}
}
