"""Drives a throwaway Atoll server with the official Python SDK, step by step.

Run it through `make demo`, which makes what it needs. It exits 0 only if every step came out as it should; otherwise
it says which one did not and shows the end of the server's log.
"""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

import anthropic

ROOT = pathlib.Path(__file__).resolve().parent.parent
ATOLL = ROOT / "bin" / "atoll"
REFUSED = "example.com"
TTY = sys.stdout.isatty()

timings = []


class Failed(Exception):
    """A step did not come out as it should."""


class step:
    """Prints a step, times it, and remembers the time for the table."""

    def __init__(self, title):
        self.title = title

    def __enter__(self):
        print(f"\n— {self.title}")
        self.start = time.monotonic()
        return self

    def __exit__(self, kind, *_):
        took = time.monotonic() - self.start
        if kind is None:
            timings.append((self.title, took))
            print(f"  {took:.2f} s")


def registry_host():
    """The host of the index that this machine's pip uses: a host that answers here, without one being named here.

    pip's configuration and environment are asked first; without a setting pip's own code knows its default.
    """
    settings = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    url = ""
    for line in settings.splitlines():
        name, _, value = line.partition("=")
        if name.endswith("index-url") and not name.endswith("extra-index-url"):
            url = value.strip("'\"")
    if not url:
        code = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
        url = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    host = urllib.parse.urlsplit(url).hostname
    if not host:
        raise Failed(f"pip's index {url!r} has no host name")
    return host


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Model:
    """The scripted model of the tests: the demo needs no account anywhere."""

    def __init__(self):
        self.key = "sk-demo-model"
        self.process = subprocess.Popen([ROOT / "bin" / "scriptedmodel"], stdout=subprocess.PIPE, text=True,
                                        env=os.environ | {"ATOLL_MODEL_KEY": self.key}, start_new_session=True)
        self.url = self.process.stdout.readline().strip()

    def stop(self):
        self.process.kill()
        self.process.wait()


class Server:
    """A server on a free port with a data directory that goes away."""

    def __init__(self, model):
        self.data = pathlib.Path(tempfile.mkdtemp(prefix="atoll-demo-"))
        self.log = self.data / "server.log"
        self.url = f"http://127.0.0.1:{free_port()}"
        # The key of the first start is used, not one of the caller's environment.
        env = {k: v for k, v in os.environ.items() if k not in ("ATOLL_API_KEY", "ATOLL_CONFIG", "ATOLL_DATA", "ATOLL_LISTEN", "ATOLL_URL")}
        env |= {"ATOLL_MODEL_URL": model.url, "ATOLL_MODEL_KEY": model.key}
        # Every sandbox is promised its disk, so that five of the default size need 50 GiB.
        config = self.data / "atoll.yaml"
        config.write_text("limits: {disk: 2GiB}\npackages: {disk: 4GiB}\n")
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [ATOLL, "serve", "--listen", self.url.removeprefix("http://"), "--data", self.data, "--config", config],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True)

    def wait_ready(self):
        deadline = time.monotonic() + 60
        while True:
            if self.process.poll() is not None:
                raise Failed(f"the server ended with {self.process.returncode}")
            try:
                with urllib.request.urlopen(self.url + "/healthz", timeout=5):
                    break
            except OSError:
                if time.monotonic() > deadline:
                    raise Failed("the server did not answer within a minute")
                time.sleep(0.05)
        self.key = (self.data / "default.key").read_text().strip()

    def call(self, method, path, body=None, timeout=900):
        """Calls one of Atoll's own routes; the SDK knows those of /v1."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"x-api-key": self.key, "content-type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            raise Failed(f"{method} {path}: {error.code} {error.read().decode(errors='replace')}")

    def exec(self, session, command):
        """Runs a command in a session's sandbox: exit code and output."""
        end = self.call("POST", f"/atoll/v1/sessions/{session}/exec?stream=false", {"command": command, "timeout_ms": 120_000})
        return end["code"], end["stdout"] + end["stderr"]

    def must(self, session, *command):
        code, output = self.exec(session, list(command))
        if code != 0:
            raise Failed(f"{command[0]} ended with {code}: {output}")
        return output.strip()

    def tail(self):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise Failed("the server did not stop within 30 s")
        if self.process.returncode != 0:
            raise Failed(f"the server ended with {self.process.returncode}")


def follow_build(server, environment):
    """Shows the build of an environment's layers until it has ended."""
    shown, start = "", time.monotonic()
    while True:
        build = server.call("GET", f"/atoll/v1/environments/{environment}/build")
        words = ", ".join(f"{l['manager']} {'cached' if l['hit'] else l['state']}" for l in build["layers"])
        line = f"{build['status']}: {words}" if words else build["status"]
        if TTY:
            print(f"\r\033[K  {time.monotonic() - start:4.0f} s  {line}", end="", flush=True)
        elif line != shown:
            print(f"  {time.monotonic() - start:4.0f} s  {line}")
        shown = line
        if build["status"] == "ready":
            break
        if build["status"] == "failed":
            error = build["error"]
            raise Failed(f"the build failed: {error['message']}\n{error['tail']}")
        time.sleep(0.25)
    if TTY:
        print()
    for layer in build["layers"]:
        named = ", ".join(f"{p['name']} {p['version']}" for p in layer["packages"] if p["requested"])
        print(f"  {layer['manager']}: {named} ({layer['size_bytes'] / 1e6:.0f} MB{', cached' if layer['hit'] else ''})")
    return build


def demo(server, client):
    allowed = registry_host()
    with step("create an environment: limited network, one allowed host, pandas, numpy, express"):
        environment = client.beta.environments.create(
            name="data-analysis",
            config={
                "type": "cloud",
                "networking": {"type": "limited", "allowed_hosts": [allowed], "allow_package_managers": True},
                "packages": {"type": "packages", "pip": ["pandas", "numpy"], "npm": ["express"]},
            },
        )
        print(f"  {environment.id}, allowed host {allowed}")
    with step("build its layers"):
        follow_build(server, environment.id)
    with step("create an agent and two sessions"):
        agent = client.beta.agents.create(name="demo", model="claude-opus-4-8")
        first = client.beta.sessions.create(agent=agent.id, environment_id=environment.id)
        second = client.beta.sessions.create(agent=agent.id, environment_id=environment.id)
        print(f"  {first.id}\n  {second.id}")
    with step("pandas in the first session"):
        code = "import pandas as p, numpy as n; d = p.DataFrame({'x': n.arange(5)}); print(int((d.x ** 2).sum()), p.__version__)"
        output = server.must(first.id, "python3", "-c", code)
        print(f"  sum of squares {output.replace(' ', ', pandas ')}")
        if not output.startswith("30 "):
            raise Failed(f"pandas computed {output!r}")
    with step("express in the second session"):
        output = server.must(second.id, "node", "-e", "console.log(typeof require('express')())")
        print(f"  require('express')() is a {output}")
        if output != "function":
            raise Failed(f"express is {output!r}")
    with step("network: the allowed host answers, another is refused"):
        curl = ["curl", "-sS", "-m", "30", "-o", "/dev/null", "-w", "%{http_code}"]
        print(f"  https://{allowed}/ → {server.must(first.id, *curl, f'https://{allowed}/')}")
        code, output = server.exec(first.id, [*curl, f"https://{REFUSED}/"])
        print(f"  https://{REFUSED}/ → curl exits {code}: {output.strip()}")
        if code == 0:
            raise Failed(f"{REFUSED} answered over HTTPS and is not allowed")
        output = server.must(first.id, "curl", "-sS", "-m", "30", "-w", " (%{http_code})", f"http://{REFUSED}/")
        print(f"  http://{REFUSED}/ → {' '.join(output.split())}")
        if "(403)" not in output or REFUSED not in output:
            raise Failed(f"{REFUSED} was not refused with a 403 that names it")
        refusals = server.call("GET", f"/atoll/v1/sessions/{first.id}/egress?verdict=refused")["data"]
        if not refusals:
            raise Failed("the refusals were not recorded")
        print(f"  recorded: {', '.join(sorted({(r['host'] or r['claimed_host'] or 'an address') + ' ' + r['reason'] for r in refusals}))}")
    with step("one session does not see the other's file"):
        server.must(first.id, "sh", "-c", "echo secret > /workspace/note")
        code, output = server.exec(second.id, ["cat", "/workspace/note"])
        print(f"  in the second session: {output.strip()}")
        if code == 0:
            raise Failed("the second session read the first one's file")
    with step("a second environment with the same packages is ready at once"):
        again = client.beta.environments.create(
            name="data-analysis-2",
            config={
                "type": "cloud",
                "networking": {"type": "limited", "allowed_hosts": [allowed]},
                "packages": {"type": "packages", "pip": ["pandas", "numpy"], "npm": ["express"]},
            },
        )
        build = follow_build(server, again.id)
        if not all(layer["hit"] for layer in build["layers"]):
            raise Failed("something was installed a second time")
    with step("create a session on it and run a first command"):
        third = client.beta.sessions.create(agent=agent.id, environment_id=again.id)
        print(f"  {server.must(third.id, 'echo', 'ready')}")
    with step("an agent's turn: the model writes a program and runs it in the sandbox"):
        thinker = client.beta.agents.create(name="thinker", model="claude-opus-4-8", tools=[{"type": "agent_toolset_20260401"}])
        fourth = client.beta.sessions.create(agent=thinker.id, environment_id=again.id)
        message = {"type": "user.message", "content": [{"type": "text", "text": "Print the first ten Fibonacci numbers."}]}
        answer = ""
        with client.beta.sessions.events.stream(fourth.id) as stream:
            client.beta.sessions.events.send(fourth.id, events=[message])
            for event in stream:
                if event.type == "agent.message":
                    answer = " ".join(block.text for block in event.content)
                    print(f"  agent: {answer}")
                elif event.type == "agent.tool_use":
                    print(f"  {event.name}: {json.dumps(event.input)[:90]}")
                elif event.type == "session.error":
                    raise Failed(event.error.message)
                elif event.type == "session.status_idle":
                    break
        if "0 1 1 2 3 5 8 13 21 34" not in answer:
            raise Failed(f"the agent answered {answer!r}")
    with step("clean up"):
        for session in (first, second, third, fourth):
            client.beta.sessions.delete(session.id)
        for each in (agent, thinker):
            client.beta.agents.archive(each.id)
        for each in (environment, again):
            client.beta.environments.delete(each.id)


def main():
    model = Model()
    server = Server(model)
    cause = None
    try:
        with step(f"start a server at {server.url}"):
            server.wait_ready()
        # A request that waits for a sandbox may take as long as a build.
        demo(server, anthropic.Anthropic(base_url=server.url, api_key=server.key, timeout=900))
        with step("stop the server"):
            server.stop()
    except (Failed, anthropic.AnthropicError, OSError, KeyError, KeyboardInterrupt) as error:
        cause = f"{type(error).__name__}: {error}"
    finally:
        model.stop()
    if cause is not None:
        print(f"\nThe demo failed: {cause}\n\nThe end of the server's log:\n{server.tail()}", file=sys.stderr)
        try:
            tidy(server)
        except (Failed, OSError) as error:
            print(f"cleaning up: {error}", file=sys.stderr)
        return 1
    shutil.rmtree(server.data)
    width = max(len(title) for title, _ in timings)
    print(f"\n{'step'.ljust(width)}  seconds")
    for title, took in timings:
        print(f"{title.ljust(width)}  {took:7.2f}")
    print("\nEverything came out as it should.")
    return 0


def tidy(server):
    """After a failure: sessions that are left hold sandboxes, which outlive the server."""
    if server.process.poll() is None and hasattr(server, "key"):
        for session in server.call("GET", "/v1/sessions?limit=100", timeout=30)["data"]:
            server.call("DELETE", f"/v1/sessions/{session['id']}", timeout=60)
    server.stop()
    shutil.rmtree(server.data)


if __name__ == "__main__":
    sys.exit(main())
