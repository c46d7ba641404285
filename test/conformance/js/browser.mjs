// What a web page does with the TypeScript client's browser mode, against a
// server of another origin. The page that loads it says where the server is, and
// whether it lets the page in; what came of it is posted to the page's own server.
import Anthropic from 'client';

const { url, key, open } = JSON.parse(document.getElementById('settings').textContent);

function equal(got, want, what) {
  if (JSON.stringify(got) !== JSON.stringify(want)) throw new Error(`${what}: ${JSON.stringify(got)} instead of ${JSON.stringify(want)}`);
}

async function refused(kind, call) {
  const error = await call().then(
    () => { throw new Error(`${kind.name} expected, the call succeeded`); },
    (e) => e,
  );
  if (!(error instanceof kind)) throw new Error(`${error} instead of ${kind.name}`);
  return error;
}

// letIn does what users of a page do.
async function letIn(client) {
  const { environments, agents, sessions } = client.beta;
  const env = await environments.create({ name: 'from a page' });
  equal((await environments.update(env.id, { description: 'd' })).description, 'd', 'update');
  equal(await environments.retrieve(env.id).withResponse().then((r) => r.request_id?.startsWith('req_')), true, 'the id of a request');
  const conflict = await refused(Anthropic.ConflictError, () => environments.create({ name: 'from a page' }));
  equal([conflict.requestID, conflict.headers.get('x-should-retry')], [conflict.error.request_id, 'false'], 'what is said of a conflict');
  await refused(Anthropic.NotFoundError, () => environments.retrieve('env_none'));
  const seen = [];
  for await (const model of client.models.list({ limit: 1 })) seen.push(model.id);
  equal(seen, ['opus-here', 'vendor/opus', 'vendor/haiku', 'unlisted'], 'models');

  const agent = await agents.create({ name: 'talker', model: 'claude-sonnet-4-6' });
  const session = await sessions.create({ agent: agent.id, environment_id: env.id });
  const stream = await sessions.events.stream(session.id);
  await sessions.events.send(session.id, { events: [{ type: 'user.message', content: [{ type: 'text', text: 'hello' }] }] });
  let said = '';
  for await (const event of stream) {
    if (event.type === 'agent.message') said = event.content[0].text;
    if (event.type === 'session.status_idle') break;
  }
  equal(said, 'You said: hello', 'the answer in the stream');
  await sessions.delete(session.id);
  await environments.delete(env.id);

  const bearer = new Anthropic({ apiKey: null, authToken: key, baseURL: url, dangerouslyAllowBrowser: true });
  equal((await bearer.beta.environments.list()).data, [], 'environments by bearer token');
  const stranger = new Anthropic({ apiKey: 'sk-wrong', baseURL: url, dangerouslyAllowBrowser: true });
  const error = await refused(Anthropic.AuthenticationError, () => stranger.beta.environments.list().then());
  equal(error.requestID, error.error.request_id, 'the id of a refused request');
}

// keptOut finds that the browser keeps everything from the page.
async function keptOut(client) {
  await refused(Anthropic.APIConnectionError, () => client.beta.environments.list().then());
  await refused(Anthropic.APIConnectionError, () => client.beta.environments.create({ name: 'from a page' }));
  const simple = await fetch(url + '/v1/environments').then(() => 'read', () => 'kept');
  equal(simple, 'kept', 'a request that needs no preflight');
}

let result = 'ok';
try {
  const client = new Anthropic({ apiKey: key, baseURL: url, dangerouslyAllowBrowser: true, maxRetries: open ? 2 : 0 });
  await (open ? letIn(client) : keptOut(client));
} catch (e) {
  result = String(e?.stack ?? e);
}
await fetch('/done', { method: 'POST', body: result });
