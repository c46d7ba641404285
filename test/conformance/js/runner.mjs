// The TypeScript client's tool runner, driven to the end of a turn against the
// server at ATOLL_URL.
import assert from 'node:assert/strict';
import Anthropic from '@anthropic-ai/sdk';
import { betaTool } from '@anthropic-ai/sdk/helpers/beta/json-schema';

const { ATOLL_URL: url, ATOLL_KEY, ATOLL_SCRIPT } = process.env;
const client = new Anthropic({ apiKey: ATOLL_KEY, baseURL: url });
const { environments, agents, sessions } = client.beta;

const inputSchema = { type: 'object', properties: { key: { type: 'string' } }, required: ['key'] };
const asked = [];
const lookup = betaTool({
  name: 'lookup',
  description: 'Looks a key up.',
  inputSchema,
  run: async ({ key }) => {
    asked.push(key);
    return `the value of ${key}`;
  },
});

// confirm allows what has to be confirmed, once.
async function confirm(stream, session) {
  for await (const event of stream) {
    if (event.type === 'agent.tool_use' && event.evaluated_permission === 'ask') {
      await sessions.events.send(session, { events: [{ type: 'user.tool_confirmation', tool_use_id: event.id, result: 'allow' }] });
      return;
    }
  }
}

const env = await environments.create({ name: 'runner' });
const agent = await agents.create({
  name: 'runner',
  model: 'claude-sonnet-4-6',
  tools: [
    { type: 'agent_toolset_20260401', configs: [{ name: 'read', permission_policy: { type: 'always_ask' } }] },
    { type: 'custom', name: 'lookup', description: 'Looks a key up.', input_schema: inputSchema },
  ],
});
const session = await sessions.create({ agent: agent.id, environment_id: env.id });
const confirming = confirm(await sessions.events.stream(session.id), session.id);
await sessions.events.send(session.id, { events: [{ type: 'user.message', content: [{ type: 'text', text: ATOLL_SCRIPT }] }] });
const calls = [];
for await (const call of sessions.events.toolRunner(session.id, { tools: [lookup], maxIdleMs: 500, signal: AbortSignal.timeout(60_000) })) {
  assert.equal(call.isError, false);
  calls.push([call.name, call.confirmation, call.posted].join());
}
await confirming;
assert.deepEqual(asked, ['k']);
assert.equal(calls.filter((c) => c === 'lookup,,true').length, 1, `${calls}`); // the whole call
assert.equal(calls.filter((c) => c === 'lookup,deny,false').length, 1, `${calls}`); // the one that cannot run

const log = [];
for await (const event of sessions.events.list(session.id)) log.push(event);
const texts = (type) => log.filter((e) => e.type === type).flatMap((e) => e.content.map((b) => b.text));
const said = texts('agent.message');
assert.equal(said[0], 'I begin.');
assert.match(said.at(-1), /read ran with [^]*the value of k|the value of k[^]*read ran with/);
const results = texts('agent.tool_result');
assert.equal(results[0], 'bash ran with {"command":"ls"}');
assert.match(results[1], /it is a list/);
assert.equal(log.at(-1).type, 'session.status_idle');
assert.equal(log.at(-1).stop_reason.type, 'end_turn');
console.log('ok');
