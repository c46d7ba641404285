// fetch and WebSocket of Bun.
const [url, ws] = process.argv.slice(2);
const why = (e: any) => "error " + [e.code, e.message].filter(Boolean).join(" ").replace(/\s+/g, " ");

await fetch(url).then(async (r) => console.log("fetch", r.status, await r.text()), (e) => console.log("fetch", why(e)));

await new Promise<void>((done) => {
  const c = new WebSocket(`wss://${ws}/`);
  c.onopen = () => c.send("text");
  c.onmessage = (m) => c.send(m.data === "text" ? "bye" : "no echo");
  c.onerror = (e: any) => console.log("websocket", why(e));
  c.onclose = (e) => { console.log("websocket closed", e.code); done(); };
});
