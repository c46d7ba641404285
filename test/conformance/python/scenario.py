"""What users of the Python client do, against the server at ATOLL_URL."""

import os

import anthropic
from anthropic import Anthropic

URL = os.environ["ATOLL_URL"]
IN_USE = os.environ["ATOLL_ENVIRONMENT_IN_USE"]


def refused(kind, error_type, call, code=None):
    """Runs call, which must fail with this class and wire type, and returns the error."""
    try:
        call()
    except anthropic.APIStatusError as e:
        assert isinstance(e, kind), f"{type(e)} instead of {kind}: {e}"
        assert e.body["error"]["type"] == error_type, e.body
        assert e.request_id and e.request_id == e.body["request_id"], e.body
        if code:
            assert e.body["error"]["details"]["error_code"] == code, e.body
        return e
    raise AssertionError(f"{kind.__name__} expected, the call succeeded")


def lifecycle(client, invalid, missing, conflict):
    environments = client.beta.environments
    # The example of SandBase's documentation.
    env = environments.create(
        name="data-analysis",
        description="Python data analysis",
        config={
            "type": "cloud",
            "base_template": "code_interpreter",
            "networking": {
                "type": "limited",
                "allowed_hosts": ["api.example.com"],
                "allow_package_managers": True,
            },
            "packages": {"pip": ["pandas", "numpy"], "npm": ["express"]},
        },
    )
    assert env.id.startswith("env_") and env.type == "environment", env
    assert env.config.base_template == "code_interpreter", env
    assert env.config.networking.allowed_hosts == ["api.example.com"], env
    assert env.config.packages.pip == ["pandas", "numpy"] and env.config.packages.apt == [], env
    assert env.archived_at is None and env.created_at == env.updated_at, env

    plain = environments.create(name="plain")
    assert plain.config.networking.type == "unrestricted" and plain.description is None, plain
    assert getattr(plain.config, "base_template", None) is None, plain

    assert environments.retrieve(env.id) == env
    changed = environments.update(env.id, description="changed", metadata={"team": "data"})
    assert changed.description == "changed" and changed.metadata == {"team": "data"}, changed
    assert changed.config == env.config, changed
    assert environments.update(env.id) == changed

    seen = [e.id for e in environments.list(limit=100)]
    assert len(seen) == len(set(seen)) == int(os.environ["ATOLL_COUNT"]) + 2, len(seen)
    assert seen[:2] == [plain.id, env.id], seen[:2]

    refused(anthropic.ConflictError, conflict, lambda: environments.create(name="plain"))
    refused(anthropic.ConflictError, conflict, lambda: environments.delete(IN_USE))
    refused(anthropic.NotFoundError, missing, lambda: environments.retrieve("env_01nothing"))
    refused(anthropic.BadRequestError, invalid, lambda: environments.create(
        name="x", config={"type": "cloud", "networking": {"type": "limited", "allowed_hosts": ["https://example.com"]}}))
    unknown = refused(anthropic.BadRequestError, invalid, lambda: environments.create(
        name="x", config={"type": "cloud", "base_template": "nonsense"}))
    assert "code_interpreter" in unknown.body["error"]["message"], unknown.body

    archived = environments.archive(env.id)
    assert archived.archived_at and environments.archive(env.id) == archived, archived
    assert env.id not in [e.id for e in environments.list(limit=100)]
    assert env.id in [e.id for e in environments.list(limit=100, include_archived=True)]
    refused(anthropic.BadRequestError, invalid, lambda: environments.update(env.id, name="late"), "environment_archived")
    agent = client.beta.agents.create(name="helper", model="claude-sonnet-4-6", tools=[{"type": "agent_toolset_20260401"}])
    refused(anthropic.BadRequestError, invalid,
            lambda: client.beta.sessions.create(agent=agent.id, environment_id=env.id))

    session = client.beta.sessions.create(agent=agent.id, environment_id=plain.id, title="t")
    assert session.status == "idle" and session.agent.id == agent.id, session
    assert client.beta.sessions.retrieve(session.id).model_copy(update={"stats": session.stats}) == session  # its age goes on
    assert session.id in [s.id for s in client.beta.sessions.list(agent_id=agent.id, statuses=["idle", "running"])]
    client.beta.sessions.delete(session.id)
    refused(anthropic.NotFoundError, missing, lambda: client.beta.sessions.retrieve(session.id))

    for e in (env, plain):
        gone = environments.delete(e.id)
        assert gone.id == e.id and gone.type == "environment_deleted", gone
    refused(anthropic.NotFoundError, missing, lambda: environments.delete(env.id))


def message(text):
    return {"type": "user.message", "content": [{"type": "text", "text": text}]}


def turn(client, session_id, events, **params):
    """Sends events and reads the stream until the session is idle."""
    with client.beta.sessions.events.stream(session_id, **params) as stream:
        sent = client.beta.sessions.events.send(session_id, events=events)
        assert [e.type for e in sent.data] == [e["type"] for e in events], sent
        seen = []
        for event in stream:
            seen.append(event)
            if event.type == "session.status_idle":
                return seen
    raise AssertionError("the stream ended before the turn did")


def find(events, kind):
    return next(e for e in events if e.type == kind)


def conversation(client):
    sessions = client.beta.sessions
    env = client.beta.environments.create(name="talk")
    agent = client.beta.agents.create(name="talker", model="claude-sonnet-4-6")
    session = sessions.create(agent=agent.id, environment_id=env.id)

    first = turn(client, session.id, [message("hello")], event_deltas=["agent.message"])
    deltas = "".join(e.delta.content.text for e in first if e.type == "event_delta")
    assert deltas == find(first, "agent.message").content[0].text == "You said: hello", first
    assert find(first, "event_start").event.id == find(first, "agent.message").id, first
    assert find(first, "session.usage").usage.input_tokens == 10, first
    assert first[-1].stop_reason.type == "end_turn", first[-1]

    second = turn(client, session.id, [message("ask")])
    use = find(second, "agent.tool_use")
    assert second[-1].stop_reason.event_ids == [use.id], second[-1]
    third = turn(client, session.id, [{"type": "user.tool_confirmation", "tool_use_id": use.id, "result": "allow"}])
    assert find(third, "agent.tool_result").is_error is False, third

    streamed = [e for e in first + second + third if not e.type.startswith("event_")]
    listed = list(sessions.events.list(session.id, limit=7))
    assert [e.to_dict() for e in listed] == [e.to_dict() for e in streamed]
    newest = [e.id for e in sessions.events.list(session.id, order="desc", types=["user.message"])]
    assert newest == [e.id for e in reversed(listed) if e.type == "user.message"], newest
    threads = list(sessions.threads.list(session.id))
    assert len(threads) == 1 and threads[0].status == "idle", threads
    assert [e.id for e in sessions.threads.events.list(threads[0].id, session_id=session.id)] == [e.id for e in listed]

    with sessions.events.stream(session.id) as stream:
        sessions.archive(session.id)
        sessions.delete(session.id)
        rest = [e.type for e in stream]
    assert rest == ["session.thread_status_terminated", "session.status_terminated", "session.deleted"], rest
    client.beta.environments.delete(env.id)


def models(client):
    ids = ["opus-here", "vendor/opus", "vendor/haiku", "unlisted"]
    for of in (client.models, client.beta.models):
        seen = list(of.list(limit=1))
        assert [m.id for m in seen] == ids, seen
        assert [m.display_name for m in seen] == ["Opus", "Opus", "vendor/haiku", "unlisted"], seen
        assert seen[0].created_at.year == 2026 and seen[3].created_at.year == 1970, seen
        back = of.list(before_id=ids[3], limit=2)
        assert [m.id for m in back.data] == ids[1:3] and back.has_more, back
        for model in seen:
            assert of.retrieve(model.id) == model
        assert of.retrieve("haiku-latest").id == "vendor/haiku"
        refused(anthropic.NotFoundError, "not_found_error", lambda: of.retrieve("nothing"))


print("anthropic", anthropic.__version__)
models(Anthropic(api_key=os.environ["ATOLL_KEY"], base_url=URL))
conversation(Anthropic(api_key=os.environ["ATOLL_KEY"], base_url=URL))
lifecycle(Anthropic(api_key=os.environ["ATOLL_KEY"], base_url=URL),
          "invalid_request_error", "not_found_error", "invalid_request_error")
lifecycle(Anthropic(api_key=os.environ["ATOLL_SANDBASE_KEY"], base_url=URL),
          "invalid_request", "not_found", "conflict")
refused(anthropic.AuthenticationError, "authentication_error",
        lambda: Anthropic(api_key="sk-wrong", base_url=URL).beta.environments.list())
print("ok")
