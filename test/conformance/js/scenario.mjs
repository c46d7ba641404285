// What users of the TypeScript client do, against the server at ATOLL_URL. The
// argument is the module to use: the client of either generation.
import assert from 'node:assert/strict';

const { ATOLL_URL: url, ATOLL_KEY, ATOLL_SANDBASE_KEY, ATOLL_ENVIRONMENT_IN_USE: inUse, ATOLL_COUNT } = process.env;
const { default: Anthropic } = await import(process.argv[2]);
const { VERSION } = await import(process.argv[2] + '/version');

async function refused(kind, errorType, call, code) {
  const error = await call().then(
    () => assert.fail(`${kind.name} expected, the call succeeded`),
    (e) => e,
  );
  assert.ok(error instanceof kind, `${error?.constructor?.name} instead of ${kind.name}: ${error}`);
  assert.equal(error.error.error.type, errorType);
  assert.equal(error.requestID, error.error.request_id);
  if (code) assert.equal(error.error.error.details.error_code, code);
  return error;
}

async function all(list) {
  const ids = [];
  for await (const item of list) ids.push(item.id);
  assert.equal(new Set(ids).size, ids.length);
  return ids;
}

async function lifecycle(client, { invalid, missing, conflict }) {
  const { environments, agents, sessions } = client.beta;
  const env = await environments.create({
    name: 'data-analysis',
    description: 'Python data analysis',
    config: {
      type: 'cloud',
      base_template: 'code_interpreter',
      networking: { type: 'limited', allowed_hosts: ['api.example.com'], allow_package_managers: true },
      packages: { pip: ['pandas', 'numpy'], npm: ['express'] },
    },
  });
  assert.match(env.id, /^env_/);
  assert.equal(env.config.base_template, 'code_interpreter');
  assert.deepEqual(env.config.networking.allowed_hosts, ['api.example.com']);
  assert.deepEqual(env.config.packages.pip, ['pandas', 'numpy']);
  assert.equal(env.archived_at, null);

  const plain = await environments.create({ name: 'plain' });
  assert.equal(plain.config.networking.type, 'unrestricted');
  assert.equal(plain.description, null);

  assert.deepEqual(await environments.retrieve(env.id), env);
  const changed = await environments.update(env.id, { description: 'changed', metadata: { team: 'data' } });
  assert.equal(changed.description, 'changed');
  assert.deepEqual(changed.metadata, { team: 'data' });
  assert.deepEqual(changed.config, env.config);

  const seen = await all(environments.list({ limit: 100 }));
  assert.equal(seen.length, Number(ATOLL_COUNT) + 2);
  assert.deepEqual(seen.slice(0, 2), [plain.id, env.id]);

  await refused(Anthropic.ConflictError, conflict, () => environments.create({ name: 'plain' }));
  await refused(Anthropic.ConflictError, conflict, () => environments.delete(inUse));
  await refused(Anthropic.NotFoundError, missing, () => environments.retrieve('env_01nothing'));
  const unknown = await refused(Anthropic.BadRequestError, invalid, () =>
    environments.create({ name: 'x', config: { type: 'cloud', base_template: 'nonsense' } }));
  assert.match(unknown.error.error.message, /code_interpreter/);

  const archived = await environments.archive(env.id);
  assert.ok(archived.archived_at);
  assert.deepEqual(await environments.archive(env.id), archived);
  assert.ok(!(await all(environments.list({ limit: 100 }))).includes(env.id));
  assert.ok((await all(environments.list({ limit: 100, include_archived: true }))).includes(env.id));
  await refused(Anthropic.BadRequestError, invalid, () => environments.update(env.id, { name: 'late' }), 'environment_archived');

  const agent = await agents.create({ name: 'helper', model: 'claude-sonnet-4-6', tools: [{ type: 'agent_toolset_20260401' }] });
  await refused(Anthropic.BadRequestError, invalid, () => sessions.create({ agent: agent.id, environment_id: env.id }));
  const session = await sessions.create({ agent: agent.id, environment_id: plain.id, title: 't' });
  assert.equal(session.status, 'idle');
  assert.deepEqual({ ...(await sessions.retrieve(session.id)), stats: session.stats }, session); // its age goes on
  assert.deepEqual(await all(sessions.list({ agent_id: agent.id, statuses: ['idle', 'running'] })), [session.id]);
  await sessions.delete(session.id);
  await refused(Anthropic.NotFoundError, missing, () => sessions.retrieve(session.id));

  for (const { id } of [env, plain]) {
    assert.deepEqual(await environments.delete(id), { id, type: 'environment_deleted' });
  }
  await refused(Anthropic.NotFoundError, missing, () => environments.delete(env.id));
}

// turn sends events and reads the stream until the session is idle.
async function turn(client, id, events, params) {
  const stream = await client.beta.sessions.events.stream(id, params);
  const sent = await client.beta.sessions.events.send(id, { events });
  assert.deepEqual(sent.data.map((e) => e.type), events.map((e) => e.type));
  const seen = [];
  for await (const event of stream) {
    seen.push(event);
    if (event.type === 'session.status_idle') break;
  }
  return seen;
}

const message = (text) => ({ type: 'user.message', content: [{ type: 'text', text }] });

async function conversation(client) {
  const { environments, agents, sessions } = client.beta;
  const env = await environments.create({ name: 'talk' });
  const agent = await agents.create({ name: 'talker', model: 'claude-sonnet-4-6' });
  const session = await sessions.create({ agent: agent.id, environment_id: env.id });

  const first = await turn(client, session.id, [message('hello')], { event_deltas: ['agent.message', 'agent.thinking'] });
  assert.equal(first.filter((e) => e.type === 'event_start').length, 1);
  const deltas = first.filter((e) => e.type === 'event_delta').map((e) => e.delta.content.text).join('');
  const said = first.find((e) => e.type === 'agent.message');
  assert.equal(deltas, 'You said: hello');
  assert.equal(said.content[0].text, deltas);
  assert.equal(first.find((e) => e.type === 'event_start').event.id, said.id);
  assert.ok(first.some((e) => e.type === 'session.usage'), 'no usage');
  assert.equal(first.at(-1).stop_reason.type, 'end_turn');

  const second = await turn(client, session.id, [message('ask')]);
  const use = second.find((e) => e.type === 'agent.tool_use');
  assert.deepEqual(second.at(-1).stop_reason, { type: 'requires_action', event_ids: [use.id] });
  const third = await turn(client, session.id, [{ type: 'user.tool_confirmation', tool_use_id: use.id, result: 'deny', deny_message: 'no' }]);
  assert.equal(third.find((e) => e.type === 'agent.tool_result').is_error, true);

  const fourth = await turn(client, session.id, [message('custom')]);
  const custom = fourth.find((e) => e.type === 'agent.custom_tool_use');
  const fifth = await turn(client, session.id,
    [{ type: 'user.custom_tool_result', custom_tool_use_id: custom.id, content: [{ type: 'text', text: 'v' }] }]);
  assert.ok(fifth.find((e) => e.type === 'user.custom_tool_result').processed_at);

  const streamed = [first, second, third, fourth, fifth].flat().filter((e) => !e.type.startsWith('event_'));
  const listed = [];
  for await (const event of sessions.events.list(session.id, { limit: 7 })) listed.push(event);
  assert.deepEqual(listed, streamed);
  const messages = [];
  for await (const event of sessions.events.list(session.id, { order: 'desc', types: ['user.message', 'agent.message'] })) messages.push(event.id);
  assert.deepEqual(messages, listed.filter((e) => e.type.endsWith('.message')).map((e) => e.id).reverse());

  const threads = await all(sessions.threads.list(session.id));
  assert.equal(threads.length, 1);
  assert.equal((await sessions.threads.retrieve(threads[0], { session_id: session.id })).status, 'idle');
  assert.deepEqual(await all(sessions.threads.events.list(threads[0], { session_id: session.id })), listed.map((e) => e.id));
  await refused(Anthropic.BadRequestError, 'invalid_request_error', () => sessions.events.send(session.id, { events: [message('')] }));

  const last = await sessions.events.stream(session.id);
  await sessions.archive(session.id);
  await sessions.delete(session.id);
  const rest = [];
  for await (const event of last) rest.push(event.type);
  assert.deepEqual(rest, ['session.thread_status_terminated', 'session.status_terminated', 'session.deleted']);
  await environments.delete(env.id);
}

// models reads the models of the scripted endpoint, with each client's own ways.
async function models(client) {
  const ids = ['opus-here', 'vendor/opus', 'vendor/haiku', 'unlisted'];
  for (const of of [client.models, client.beta.models]) {
    const seen = [];
    for await (const model of of.list({ limit: 1 })) seen.push(model);
    assert.deepEqual(seen.map((m) => m.id), ids);
    assert.deepEqual(seen.map((m) => [m.type, m.display_name]), [['model', 'Opus'], ['model', 'Opus'], ['model', 'vendor/haiku'], ['model', 'unlisted']]);
    const back = await of.list({ before_id: ids[3], limit: 2 });
    assert.deepEqual([back.data.map((m) => m.id), back.has_more, back.first_id, back.last_id], [ids.slice(1, 3), true, ids[1], ids[2]]);
    for (const model of seen) assert.deepEqual(await of.retrieve(model.id), model);
    assert.equal((await of.retrieve('haiku-latest')).id, 'vendor/haiku');
    await refused(Anthropic.NotFoundError, 'not_found_error', () => of.retrieve('nothing'));
  }
}

console.log(process.argv[2], VERSION);
await models(new Anthropic({ apiKey: ATOLL_KEY, baseURL: url }));
await conversation(new Anthropic({ apiKey: ATOLL_KEY, baseURL: url }));
await lifecycle(new Anthropic({ apiKey: ATOLL_KEY, baseURL: url }),
  { invalid: 'invalid_request_error', missing: 'not_found_error', conflict: 'invalid_request_error' });
await lifecycle(new Anthropic({ apiKey: ATOLL_SANDBASE_KEY, baseURL: url }),
  { invalid: 'invalid_request', missing: 'not_found', conflict: 'conflict' });
const stranger = new Anthropic({ apiKey: 'sk-wrong', baseURL: url });
await refused(Anthropic.AuthenticationError, 'authentication_error', () => stranger.beta.environments.list().then());
console.log('ok');
