// The official quickstart: agent, environment, session, stream, message, tool use, answer, and the same events listed.
const module = process.argv[2];
const { default: Anthropic } = await import(module);
const client = new Anthropic({ baseURL: process.env.ATOLL_URL, apiKey: process.env.ATOLL_KEY });
const fail = (text) => {
  console.error(text);
  process.exit(1);
};
const agent = await client.beta.agents.create({
  name: 'Coding Assistant', model: 'claude-opus-4-8', system: 'You are a helpful coding assistant.',
  tools: [{ type: 'agent_toolset_20260401' }],
});
const environment = await client.beta.environments.create({
  name: 'quickstart-' + module.replaceAll(/[^a-z0-9]/g, '-'), config: { type: 'cloud', base_template: 'slim' },
});
const session = await client.beta.sessions.create({ agent: agent.id, environment_id: environment.id, title: 'Quickstart session' });
const stream = await client.beta.sessions.events.stream(session.id);
await client.beta.sessions.events.send(session.id, {
  events: [{ type: 'user.message', content: [{ type: 'text', text: 'Write a Python script that prints the Fibonacci numbers, and run it.' }] }],
});
const seen = [];
const used = [];
let said = '';
for await (const event of stream) {
  seen.push(event.id);
  if (event.type === 'agent.message') said = event.content.map((block) => block.text).join('');
  if (event.type === 'agent.tool_use') used.push(event.name);
  if (event.type === 'session.status_idle') break;
}
const listed = [];
for await (const event of client.beta.sessions.events.list(session.id)) listed.push(event.id);
if (!said.includes('0 1 1 2 3 5 8 13 21 34') || used.join() !== 'write,bash') fail(`used ${used}, said ${said}`);
// A client of the first generation drops the frames of events that it does not know; the list has them all.
const streamed = listed.filter((id) => seen.includes(id));
if (streamed.join() !== seen.join() || listed.length - seen.length > (module === 'anthropic-sdk-0' ? 1 : 0)) fail(`streamed ${seen}\nlisted ${listed}`);
if ((await client.beta.sessions.retrieve(session.id)).status !== 'idle') fail('the session is not idle');
console.log('ok');
process.exit(0);
