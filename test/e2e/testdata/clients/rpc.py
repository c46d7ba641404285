"""gRPC over TLS, unary and both ways at once, and a WebSocket."""
import asyncio, sys

import grpc, websockets

host, ws = sys.argv[1], sys.argv[2]


async def websocket():
    async with websockets.connect(f"wss://{ws}/", max_size=None, open_timeout=20) as c:
        await c.send("text")
        assert await c.recv() == "text"
        await c.send(b"\x00" * 1_000_000)
        assert len(await c.recv()) == 1_000_000
        await c.send("bye")
        await c.wait_closed()
        return f"closed {c.close_code}"


def attempt(name, f):
    try:
        print(name, f(), flush=True)
    except grpc.RpcError as e:
        print(name, "error", e.code().name, " ".join(e.details().split()), flush=True)
    except Exception as e:
        print(name, "error", " ".join(str(e).split()), flush=True)


roots = open("/etc/ssl/certs/ca-certificates.crt", "rb").read()
with grpc.secure_channel(f"{host}:443", grpc.ssl_channel_credentials(roots)) as channel:
    unary = channel.unary_unary("/atoll.Probe/Echo")
    attempt("unary", lambda: unary(b"x" * 100_000, timeout=20) == b"x" * 100_000)
    both = channel.stream_stream("/atoll.Probe/Echo")
    attempt("stream", lambda: len(list(both(iter([b"message"] * 100), timeout=20))))
attempt("websocket", lambda: asyncio.run(websocket()))
