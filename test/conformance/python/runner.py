"""The Python client's tool runner, driven to the end of a turn against the server at ATOLL_URL."""

import asyncio
import os

from anthropic import AsyncAnthropic
from anthropic.lib.tools import beta_async_tool

TOOLS = [
    {"type": "agent_toolset_20260401", "configs": [{"name": "read", "permission_policy": {"type": "always_ask"}}]},
    {"type": "custom", "name": "lookup", "description": "Looks a key up.",
     "input_schema": {"type": "object", "properties": {"key": {"type": "string"}}, "required": ["key"]}},
]

asked = []


@beta_async_tool(name="lookup", description="Looks a key up.", input_schema=TOOLS[1]["input_schema"])
async def lookup(key):
    asked.append(key)
    return f"the value of {key}"


async def confirm(client, stream, session):
    """Allows what has to be confirmed, once."""
    async for event in stream:
        if event.type == "agent.tool_use" and event.evaluated_permission == "ask":
            await client.beta.sessions.events.send(
                session, events=[{"type": "user.tool_confirmation", "tool_use_id": event.id, "result": "allow"}])
            return


async def main():
    client = AsyncAnthropic(api_key=os.environ["ATOLL_KEY"], base_url=os.environ["ATOLL_URL"])
    env = await client.beta.environments.create(name="runner")
    agent = await client.beta.agents.create(name="runner", model="claude-sonnet-4-6", tools=TOOLS)
    session = await client.beta.sessions.create(agent=agent.id, environment_id=env.id)
    stream = await client.beta.sessions.events.stream(session.id)
    confirming = asyncio.create_task(confirm(client, stream, session.id))
    await client.beta.sessions.events.send(
        session.id, events=[{"type": "user.message", "content": [{"type": "text", "text": os.environ["ATOLL_SCRIPT"]}]}])
    calls = {}
    async with asyncio.timeout(60):
        async for call in client.beta.sessions.events.tool_runner(session.id, tools=[lookup], max_idle=0.5):
            calls.setdefault((call.name, call.confirmation, call.posted), []).append(call.tool_use_id)
            assert not call.is_error, call
        await confirming
    assert asked == ["k"], asked
    assert len(calls.get(("lookup", None, True), [])) == 1, calls  # the whole call
    assert len(calls.get(("lookup", "deny", False), [])) == 1, calls  # the one that cannot run
    log = [e async for e in client.beta.sessions.events.list(session.id)]
    said = [b.text for e in log if e.type == "agent.message" for b in e.content]
    assert said[0] == "I begin." and "the value of k" in said[-1] and "read ran with" in said[-1], said
    results = [b.text for e in log if e.type == "agent.tool_result" for b in e.content]
    assert results[0] == 'bash ran with {"command":"ls"}' and "it is a list" in results[1], results
    assert log[-1].type == "session.status_idle" and log[-1].stop_reason.type == "end_turn", log[-1]
    print("ok")


asyncio.run(main())
