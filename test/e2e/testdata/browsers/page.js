// What became of the page and of all that it loads, one line each.
const said = [];
const picture = document.getElementById("picture");
await picture.decode();
said.push("page " + performance.getEntriesByType("navigation")[0].nextHopProtocol);
said.push("style " + getComputedStyle(document.getElementById("said")).color);
said.push("picture " + picture.naturalWidth);
said.push("other host " + await fetch("https://api.example.com/").then((r) => r.text(), (e) => "error " + e.message));
said.push("refused host " + await fetch("https://refused.example.com/").then((r) => "loaded " + r.status, (e) => "error " + e.message));
said.push("websocket " + await new Promise((done) => {
  const c = new WebSocket("wss://ws.example.com/");
  c.onopen = () => c.send("text");
  c.onmessage = (m) => c.send(m.data === "text" ? "bye" : "no echo");
  c.onclose = (e) => done("closed " + e.code);
}));
document.getElementById("said").innerText = said.join("\n");
await fetch("/finish");
