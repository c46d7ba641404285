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
  assert.deepEqual(await sessions.retrieve(session.id), session);
  assert.deepEqual(await all(sessions.list({ agent_id: agent.id, statuses: ['idle', 'running'] })), [session.id]);
  await sessions.delete(session.id);
  await refused(Anthropic.NotFoundError, missing, () => sessions.retrieve(session.id));

  for (const { id } of [env, plain]) {
    assert.deepEqual(await environments.delete(id), { id, type: 'environment_deleted' });
  }
  await refused(Anthropic.NotFoundError, missing, () => environments.delete(env.id));
}

console.log(process.argv[2], VERSION);
await lifecycle(new Anthropic({ apiKey: ATOLL_KEY, baseURL: url }),
  { invalid: 'invalid_request_error', missing: 'not_found_error', conflict: 'invalid_request_error' });
await lifecycle(new Anthropic({ apiKey: ATOLL_SANDBASE_KEY, baseURL: url }),
  { invalid: 'invalid_request', missing: 'not_found', conflict: 'conflict' });
const stranger = new Anthropic({ apiKey: 'sk-wrong', baseURL: url });
await refused(Anthropic.AuthenticationError, 'authentication_error', () => stranger.beta.environments.list().then());
console.log('ok');
