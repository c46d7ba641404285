"""The official quickstart: agent, environment, session, stream, message, tool use, answer, and the same events listed."""

import os
import sys

import anthropic
from anthropic import Anthropic

print("anthropic", anthropic.__version__)
client = Anthropic(base_url=os.environ["ATOLL_URL"], api_key=os.environ["ATOLL_KEY"])
agent = client.beta.agents.create(name="Coding Assistant", model="claude-opus-4-8", system="You are a helpful coding assistant.",
                                  tools=[{"type": "agent_toolset_20260401"}])
environment = client.beta.environments.create(name="quickstart-python", config={"type": "cloud", "base_template": "slim"})
session = client.beta.sessions.create(agent=agent.id, environment_id=environment.id, title="Quickstart session")
seen, said, used = [], "", []
with client.beta.sessions.events.stream(session.id) as stream:
    client.beta.sessions.events.send(session.id, events=[
        {"type": "user.message", "content": [{"type": "text", "text": "Write a Python script that prints the Fibonacci numbers, and run it."}]}])
    for event in stream:
        seen.append(event.id)
        if event.type == "agent.message":
            said = "".join(block.text for block in event.content)
        elif event.type == "agent.tool_use":
            used.append(event.name)
        elif event.type == "session.status_idle":
            break
listed = [event.id for event in client.beta.sessions.events.list(session.id)]
if "0 1 1 2 3 5 8 13 21 34" not in said or used != ["write", "bash"]:
    sys.exit(f"used {used}, said {said!r}")
if listed != seen:
    sys.exit(f"streamed {seen}\nlisted {listed}")
if client.beta.sessions.retrieve(session.id).status != "idle":
    sys.exit("the session is not idle")
print("ok")
