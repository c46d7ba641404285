// fetch of Node itself and the WebSocket of package ws.
import WebSocket from "ws";

const [url, ws] = process.argv.slice(2);
const why = (e) => "error " + [e.message, e.cause?.code, e.cause?.message, e.code].filter(Boolean).join(" ").replace(/\s+/g, " ");

await fetch(url, { signal: AbortSignal.timeout(20000) })
  .then(async (r) => console.log("fetch", await r.text()), (e) => console.log("fetch", why(e)));

await new Promise((done) => {
  const c = new WebSocket(`wss://${ws}/`, { handshakeTimeout: 20000 });
  c.on("open", () => c.send("text"));
  c.on("message", (m) => { if (String(m) === "text") c.send("bye"); });
  c.on("close", (code) => { console.log("websocket closed", code); done(); });
  c.on("error", (e) => { console.log("websocket", why(e)); });
});
