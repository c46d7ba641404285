package sandboxtest

import (
	"strings"
	"testing"

	"github.com/atoll-run/atoll/internal/sandbox"
)

// testSetID: set-id programs work for users other than root, and give them no
// more than root has inside.
func testSetID(t *testing.T, s *suite) {
	id := s.create(t, nil)
	s.sh(t, id, "cp /usr/bin/perl /usr/local/bin/as-root; chmod 4755 /usr/local/bin/as-root; cp /usr/bin/perl /usr/local/bin/as-group; chgrp 33 /usr/local/bin/as-group; chmod 2755 /usr/local/bin/as-group")
	const asNobody = `perl -e '$) = "65534 65534"; $( = 65534; $< = $> = 65534; exec @ARGV or die' -- `
	got := s.sh(t, id, asNobody+`/usr/local/bin/as-root -e 'print "$<:$> "; open(F, ">/etc/mine") or die; print "written\n"'`)
	if got != "65534:0 written\n" {
		t.Errorf("set-user-id: %q", got)
	}
	if got := s.sh(t, id, asNobody+`/usr/local/bin/as-group -e '($g) = split " ", $); print "$g\n"'`); got != "33\n" {
		t.Errorf("set-group-id: %q", got)
	}
	root := s.sh(t, id, "grep ^CapPrm /proc/self/status")
	if got := s.sh(t, id, asNobody+`/usr/local/bin/as-root -e 'open(F, "/proc/self/status"); print grep { /^CapPrm/ } <F>'`); got != root {
		t.Errorf("a set-user-id program has %q, root has %q", got, root)
	}
	if got := s.exec(t, id, sandbox.Command{Args: []string{"sh", "-c", asNobody + "sh -c 'echo x > /etc/passwd'"}}); got.Code == 0 {
		t.Error("nobody could write to /etc/passwd")
	}
}

// testLoopbackSix: servers that bind ::1 or :: start, and nothing but loopback
// has an IPv6 address.
func testLoopbackSix(t *testing.T, s *suite) {
	id := s.create(t, nil)
	script := `python3 -c '
import socket
l = socket.create_server(("::1", 0), family=socket.AF_INET6)
socket.create_connection(l.getsockname()[:2]).sendall(b"through ::1")
print(l.accept()[0].recv(100).decode())
d = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
socket.create_connection(("127.0.0.1", d.getsockname()[1])); print("both")'`
	if got := s.sh(t, id, script); got != "through ::1\nboth\n" {
		t.Errorf("IPv6 on loopback: %q", got)
	}
	if got := s.sh(t, id, "awk '{print $NF}' /proc/net/if_inet6 | sort -u"); got != "lo\n" {
		t.Errorf("interfaces with an IPv6 address: %q", got)
	}
}

// testProcSys: what programs look up about the kernel reads as on Linux.
func testProcSys(t *testing.T, s *suite) {
	id := s.create(t, nil)
	if got := s.sh(t, id, "cat /proc/sys/kernel/yama/ptrace_scope"); got != "0\n" {
		t.Errorf("ptrace_scope is %q: a debugger of the same user cannot attach", got)
	}
	for _, name := range []string{"file-max", "nr_open", "inotify/max_user_watches", "inotify/max_user_instances", "inotify/max_queued_events"} {
		if got := strings.TrimSpace(s.sh(t, id, "cat /proc/sys/fs/"+name)); len(got) < 4 {
			t.Errorf("/proc/sys/fs/%s is %q", name, got)
		}
	}
	if got := s.exec(t, id, sandbox.Command{Args: []string{"sh", "-c", "echo 1 > /proc/sys/fs/file-max"}}); got.Code == 0 {
		t.Error("a value that has no effect could be changed")
	}
}
