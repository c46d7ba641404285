"""An MCP server over streamable HTTP for the tests: `mcp_server.py LOG`.

It prints its port, and appends a line to LOG for each call of `once`.
"""
import asyncio
import socket
import sys

import uvicorn
from mcp.server.mcpserver import Image, MCPServer
from mcp.server.transport_security import TransportSecuritySettings
from mcp.types import ToolAnnotations

server = MCPServer("test")


@server.tool(annotations=ToolAnnotations(readOnlyHint=True))
def add(a: int, b: int) -> str:
    """Add two numbers."""
    return f"sum: {a + b}"


@server.tool(structured_output=False)
def once(word: str) -> str:
    """Take a note, which another call would take again."""
    with open(sys.argv[1], "a") as log:
        log.write(word + "\n")
    return "noted " + word


@server.tool(name="dots.and/strokes", structured_output=False)
def odd() -> str:
    """A name that the Messages API does not take."""
    return "odd"


@server.tool(structured_output=False)
def picture() -> Image:
    return Image(data=b"\x89PNG\r\n\x1a\n", format="png")


@server.tool(structured_output=False)
def mixed(words: int) -> list:
    """Texts and pictures in turn: with words in each text."""
    return ["a" * words, Image(data=b"\x89PNG\r\n\x1a\n", format="png"), "b" * words, Image(data=b"GIF89a", format="gif"), "c" * words]


@server.tool()
def hidden() -> str:
    return "hidden"


@server.tool()
def structured() -> dict[str, int]:
    return {"answer": 42}


@server.tool(structured_output=False)
def fails() -> str:
    raise ValueError("it does not work")


@server.tool(structured_output=False)
def long() -> str:
    return "long " * 50_000


@server.tool(structured_output=False)
async def slow(log: str) -> str:
    with open(log, "a") as f:
        f.write("began\n")
    await asyncio.sleep(1000)
    return "slept"


listener = socket.socket()
listener.bind(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
app = server.streamable_http_app(transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False))
uvicorn.Server(uvicorn.Config(app, log_level="error")).run([listener])
