"use strict";
// Shows the stats document. Every text is set as text, never as HTML, because users choose some.
const STALE_MS = 7000;
const SVG = "http://www.w3.org/2000/svg";
const by = (id) => document.getElementById(id);
let latest = null, heardAt = 0, signedIn = false, source = null;

function make(name, attributes, ...children) {
  const one = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === "onclick") one.addEventListener("click", value);
    else if (value !== undefined && value !== false) one.setAttribute(key, value);
  }
  one.append(...children.map((child) => (child === null || child === undefined ? "" : child)));
  return one;
}

function say(id, text) { const one = by(id); if (one.textContent !== text) one.textContent = text; }

function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0 s";
  if (value < 0.001) return `${(value * 1e6).toFixed(0)} µs`;
  if (value < 1) return `${(value * 1e3).toFixed(value < 0.01 ? 1 : 0)} ms`;
  if (value < 90) return `${value.toFixed(value < 10 ? 1 : 0)} s`;
  if (value < 5400) return `${(value / 60).toFixed(0)} min`;
  return value < 172800 ? `${(value / 3600).toFixed(1)} h` : `${(value / 86400).toFixed(0)} days`;
}

function bytes(value) {
  if (value === null || value === undefined) return "–";
  const units = ["B", "KB", "MB", "GB", "TB"];
  let step = 0;
  while (value >= 1000 && step < units.length - 1) { value /= 1000; step += 1; }
  return `${value.toFixed(value < 10 && step ? 1 : 0)} ${units[step]}`;
}

const number = (value) => value.toLocaleString("en");
const short = (text) => (text && /^[0-9a-f]{20,}/.test(text) ? text.slice(0, 12) : text || "–");

const counted = (counts) => Object.entries(counts).sort((a, b) => b[1] - a[1]).map(([name, count]) => `${name} ${number(count)}`).join(", ");

function tag(text) {
  const good = ["ready", "up", "free", "run", "running", "serving"], bad = ["quarantined", "failed", "lost", "stuck"];
  return make("span", { class: `tag ${good.includes(text) ? "good" : bad.includes(text) ? "bad" : ""}` }, text);
}

function bar(part, kind) {
  const image = document.createElementNS(SVG, "svg"), rect = document.createElementNS(SVG, "rect");
  image.setAttribute("viewBox", "0 0 100 8"); image.setAttribute("preserveAspectRatio", "none"); image.setAttribute("aria-hidden", "true");
  rect.setAttribute("height", "8"); rect.setAttribute("width", String(100 * Math.max(0, Math.min(1, part || 0))));
  image.append(rect);
  return make("div", { class: `track ${kind || ""}` }, image);
}

// Rows that have not changed stay in place, so that they keep their focus and open details.
function fill(parent, items, key, build) {
  const known = new Map([...parent.children].map((one) => [one.dataset.key, one]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const name = String(key(item)), cells = build(item), shape = cells.map((cell) => (cell instanceof Node ? cell.outerHTML : String(cell))).join("\u0000");
    let row = known.get(name);
    known.delete(name);
    if (!row) { row = make(parent.tagName === "TBODY" ? "tr" : "li", {}); row.dataset.key = name; }
    if (row.dataset.shape !== shape) { row.dataset.shape = shape; update(row, cells, item); }
    if (row !== place) parent.insertBefore(row, place); else place = place.nextElementSibling;
  }
  for (const gone of known.values()) gone.remove();
}

function update(row, cells, item) {
  if (row.tagName !== "TR") { row.replaceChildren(...cells); return; }
  cells.forEach((cell, index) => {
    let one = row.children[index];
    if (!one) { one = make("td", {}); row.append(one); }
    const text = cell instanceof Node ? cell.outerHTML : String(cell);
    if (one.dataset.shape === text) return;
    one.dataset.shape = text;
    one.className = item.numbers.includes(index) ? "num" : "";
    one.replaceChildren(cell);
    if (!(cell instanceof Node)) one.title = text;
  });
}

function table(id, items, key, numbers, build) {
  const one = by(id);
  one.closest(".scroll").hidden = !items.length;
  fill(one.tBodies[0], items.map((item) => ({ ...item, numbers })), key, build);
}

function list(id, items) {
  const shape = JSON.stringify(items), one = by(id);
  if (one.dataset.shape === shape) return;
  one.dataset.shape = shape;
  one.replaceChildren(...items.map(([name, part, text, kind]) => make("li", {}, make("span", {}, name), bar(part, kind), make("span", { class: "num" }, text))));
}

function show(stats) {
  const failed = Object.entries(stats.outcomes).reduce((sum, [name, count]) => sum + (name === "ok" ? 0 : count), 0);
  say("mode", stats.server.mode); say("version", `version ${stats.server.version}`); say("uptime", `up ${seconds(stats.server.uptime_s)}`);
  say("busy", number(stats.slots.busy)); say("slots", number(stats.slots.total));
  by("slotMeter").value = stats.slots.total ? stats.slots.busy / stats.slots.total : 0;
  say("depth", number(stats.queue.depth));
  const oldest = stats.queue.oldest_age_s;
  say("oldest", oldest === null ? (stats.queue.refused ? `${number(stats.queue.refused)} refused so far` : "no call waits") : `oldest waits ${seconds(oldest)}${stats.queue.refused ? `, ${number(stats.queue.refused)} refused` : ""}`);
  by("queueTile").classList.toggle("warn", oldest !== null && oldest > 30);
  say("calls", number(stats.calls)); say("good", stats.calls ? `${((100 * (stats.calls - failed)) / stats.calls).toFixed(1)} % succeeded` : "");
  say("failed", number(failed));
  const last = stats.recent_failures[stats.recent_failures.length - 1];
  say("failNote", last ? `last ${seconds(Math.max(0, Date.now() / 1000 - last.at))} ago: ${last.error_type}` : "none");
  by("failTile").classList.toggle("bad", Boolean(last) && Date.now() / 1000 - last.at < 60);
  const run = stats.latency.run;
  say("runp50", run ? seconds(run.p50_s) : "–"); say("runNote", run ? `95th ${seconds(run.p95_s)}, 99th ${seconds(run.p99_s)}` : "");
  showHour(stats.last_hour); showRunning(stats.running); showGpus(stats.gpus); showFailures(stats.recent_failures);
  by("noLatency").hidden = Object.keys(stats.latency).length > 0;
  table("latency", Object.entries(stats.latency).map(([phase, one]) => ({ phase, one })), (row) => row.phase, [1, 2, 3, 4],
    ({ phase, one }) => [phase, seconds(one.p50_s), seconds(one.p95_s), seconds(one.p99_s), seconds(one.max_s)]);
  const most = Math.max(1, ...Object.values(stats.outcomes));
  by("noOutcomes").hidden = stats.calls > 0;
  list("outcomes", Object.entries(stats.outcomes).sort((a, b) => b[1] - a[1]).map(([name, count]) => [name, count / most, number(count), name === "ok" ? "good" : "bad"]));
  by("jobsCard").hidden = !stats.jobs;
  if (stats.jobs) say("jobs", `${number(stats.jobs.running)} running, ${number(stats.jobs.taken)} taken, ${number(stats.jobs.done)} done, ${number(stats.jobs.failed)} failed; reports that the platform has not taken: ${number(stats.jobs.reports_waiting)}`);
  showKept(stats);
}

function showHour(minutes) {
  const image = by("hour"), now = Math.floor(Date.now() / 60000) * 60, most = Math.max(1, ...minutes.map((one) => one.calls));
  const shape = JSON.stringify([minutes, now]);
  if (image.dataset.shape === shape) return;
  image.dataset.shape = shape;
  const parts = [];
  const rect = (x, y, height, kind) => { const one = document.createElementNS(SVG, "rect"); for (const [k, v] of Object.entries({ x, y, height, width: 8, rx: 1.5, class: kind })) one.setAttribute(k, v); parts.push(one); };
  for (const minute of minutes) {
    const x = 590 - ((now - minute.at) / 60) * 10;
    if (x < 0) continue;
    const tall = Math.max(2, (122 * minute.calls) / most), bad = minute.failed ? Math.max(2, (122 * minute.failed) / most) : 0;
    rect(x, 126 - tall, tall, "ok");
    if (bad) rect(x, 126 - bad, bad, "no");
  }
  const line = document.createElementNS(SVG, "line");
  for (const [k, v] of Object.entries({ x1: 0, x2: 600, y1: 127, y2: 127, class: "axis" })) line.setAttribute(k, v);
  image.replaceChildren(...parts, line);
  const total = minutes.reduce((sum, one) => sum + one.calls, 0), failed = minutes.reduce((sum, one) => sum + one.failed, 0);
  const slowest = Math.max(0, ...minutes.map((one) => one.p95_s));
  const text = total ? `${number(total)} calls ended, ${number(failed)} of them failed. Most in a minute: ${number(most)}. Slowest minute's 95th percentile: ${seconds(slowest)}.` : "No calls have ended in this hour.";
  say("hourText", text); image.setAttribute("aria-label", `Calls by the minute. ${text}`);
}

// A GPU is shown by its index, as on its card; several MIG devices share an index.
function gpuName(uuid) {
  const gpu = latest && latest.gpus.devices.find((one) => one.uuid === uuid);
  return gpu && !gpu.parent ? String(gpu.index) : short(uuid);
}

function showRunning(calls) {
  by("noRunning").hidden = calls.length > 0;
  say("runningCount", calls.length ? `(${number(calls.length)})` : "");
  table("running", calls.slice(0, 100), (call) => call.id, [3, 4], (call) => [
    make("span", { class: "mono" }, `#${call.id}`), call.label, tag(call.phase), seconds(call.age_s), call.pid === null ? "–" : String(call.pid), short(call.environment), call.gpus.map(gpuName).join(", ") || "–",
    make("div", { class: "buttons", "data-call": call.id }, ...["Output", "Stacks", "Cancel"].map((what) => make("button", { type: "button", class: `small${what === "Cancel" ? " danger" : ""}`, "data-do": what, "aria-label": `${what} of call ${call.id}` }, what))),
  ]);
}

function showGpus(gpus) {
  by("gpuCard").hidden = !gpus.devices.length && !gpus.reason;
  const shape = JSON.stringify(gpus.devices), one = by("gpus");
  if (one.dataset.shape === shape) return;
  one.dataset.shape = shape;
  one.replaceChildren(...gpus.devices.map((gpu) => {
    const ill = gpu.state === "quarantined";
    return make("article", { class: `gpu ${ill ? "bad" : ""}` },
      make("div", { class: "head" }, make("span", {}, `${gpu.index}: ${gpu.name || "GPU"}`), tag(gpu.state)),
      bar(gpu.memory_bytes ? gpu.used_bytes / gpu.memory_bytes : 0, ill ? "bad" : ""),
      make("p", {}, `${bytes(gpu.used_bytes)} of ${bytes(gpu.memory_bytes)}; calls: ${gpu.calls}`),
      ...gpuHealth(gpu),
      make("p", { class: "mono" }, gpu.uuid),
      ill ? make("p", { class: "why" }, `${gpu.evidence || ""} (for ${seconds(gpu.quarantined_s)})`) : "");
  }));
}

function gpuHealth(gpu) {
  const figures = [], errors = [];
  if (gpu.utilization_percent !== null) figures.push(`${gpu.utilization_percent} % busy`);
  if (gpu.temperature_c !== null) figures.push(`${gpu.temperature_c} °C`);
  if (gpu.ecc_corrected) errors.push(`ECC errors corrected: ${number(gpu.ecc_corrected)}`);
  if (gpu.ecc_uncorrected) errors.push(`not corrected: ${number(gpu.ecc_uncorrected)}`);
  if (gpu.xid_errors) errors.push(`Xid errors: ${number(gpu.xid_errors)}, the latest ${gpu.last_xid}`);
  const grave = gpu.ecc_uncorrected || gpu.xid_errors;
  return [figures.length ? make("p", {}, figures.join(", ")) : "", errors.length ? make("p", grave ? { class: "why" } : {}, errors.join("; ")) : ""];
}

function showFailures(failures) {
  by("noFailures").hidden = failures.length > 0;
  const box = by("failures"), known = new Map([...box.children].map((one) => [one.dataset.key, one]));
  let place = box.firstElementChild;
  for (const one of failures.slice().reverse()) {
    const key = `${one.at}-${one.call}`, lines = [one.error];
    if (one.last_lines) lines.push("", "Last output:", one.last_lines);
    lines.push("", `Receipt: ${JSON.stringify(one.receipt)}`);
    const details = known.get(key) || failure(one, key), text = lines.join("\n"), ago = `${seconds(Math.max(0, Date.now() / 1000 - one.at))} ago`;
    known.delete(key);
    // Open details, and those with the focus, stay as they are.
    if (details.lastChild.textContent !== text) details.lastChild.textContent = text;
    details.querySelector("time").textContent = ago;
    if (details !== place) box.insertBefore(details, place); else place = place.nextElementSibling;
  }
  for (const gone of known.values()) gone.remove();
}

function failure(one, key) {
  return make("details", { "data-key": key },
    make("summary", {}, make("span", { class: "tag bad" }, one.cause), make("span", { class: "what" }, `${one.label}: ${one.error.split("\n")[0] || one.error_type}`), make("time", { datetime: new Date(one.at * 1000).toISOString() })),
    make("pre", { tabindex: "0" }));
}

function showKept(stats) {
  by("instanceCard").hidden = !stats.instances.length;
  table("instances", stats.instances.slice(0, 200), (one) => one.instance, [3, 4, 5, 6, 7], (one) => [one.instance, one.class_name, tag(one.state), number(one.calls), number(one.waiting), bytes(one.memory_mb * 1048576), seconds(one.idle_s), String(one.generation),
    make("div", { class: "buttons", "data-instance": one.instance }, make("button", { type: "button", class: "small danger", "data-do": "Evict", "aria-label": `Evict instance ${one.instance}` }, "Evict"))]);
  by("appCard").hidden = !stats.apps.length;
  table("apps", stats.apps, (one) => one.app, [2, 3, 4], (one) => [one.app, tag(one.state), String(one.workers.length), String(one.waiting), String(one.deaths), one.failure || one.last_death || "–"]);
  const routes = stats.apps.flatMap((one) => one.routes);
  by("routeTitle").hidden = !routes.length;
  table("routes", routes, (one) => one.route, [1, 3, 4, 5], (one) => [one.route, number(one.latency.count), counted(one.requests), seconds(one.latency.p50_s), seconds(one.latency.p95_s), seconds(one.latency.max_s)]);
  table("zygotes", stats.zygotes, (one) => `${one.environment}#${one.profile}`, [4, 5, 6, 7], (one) => [`${short(one.environment)}#${one.profile}`, tag(one.state), one.python, one.reason ? `${one.start_method}: ${one.reason}` : one.start_method, String(one.spares), String(one.workers), String(one.preloaded), String(one.starts)]);
  say("found", Object.keys(stats.environment_origins).length ? `Calls found theirs: ${counted(stats.environment_origins)}` : "");
  fill(by("stores"), stats.stores, (one) => one.root, (one) => [`${one.root}: ${one.environments === null ? "not counted yet" : `${number(one.environments)} kept, ${bytes(one.bytes)}`}; built here ${number(one.builds)}, failed ${number(one.failed_builds)}, evicted ${number(one.evictions)}${one.problem ? `. ${one.problem}` : ""}`]);
  list("storage", stats.storage.map((one) => one.problem ? [one.place, 1, one.problem, "bad"] : [`${one.place} disk`, 1 - one.free_bytes / Math.max(1, one.size_bytes), `${bytes(one.free_bytes)} free of ${bytes(one.size_bytes)}`, one.free_bytes < 0.05 * one.size_bytes ? "bad" : ""]));
}

async function showState() {
  const box = by("state"), stale = Date.now() - heardAt > STALE_MS;
  document.body.classList.toggle("stale", stale);
  say("updated", heardAt ? `updated ${seconds((Date.now() - heardAt) / 1000 < 1 ? 0.9 : Math.floor((Date.now() - heardAt) / 1000))} ago`.replace("900 ms", "just now").replace("just now ago", "just now") : "");
  if (stale || !latest) { say("state", heardAt ? "Stale: the server does not answer" : "Connecting"); box.className = "state bad"; return; }
  const [text, kind] = latest.draining ? ["Draining", "warn"] : latest.ready ? ["Ready", "good"] : ["Not ready", "bad"];
  say("state", text); box.className = `state ${kind}`;
  say("drain", latest.draining ? "Accept calls again" : "Drain");
  if (latest.ready) { by("reasons").hidden = true; return; }
  try {
    const found = await (await fetch("readyz")).json();
    say("reasons", found.reasons.map((one) => one.detail || one.cause).join("; ")); by("reasons").hidden = !found.reasons.length;
  } catch { by("reasons").hidden = true; }
}

function listen() {
  if (source) source.close();
  source = new EventSource("events");
  source.addEventListener("stats", (event) => { latest = JSON.parse(event.data); heardAt = Date.now(); show(latest); showState(); });
  source.onerror = async () => {
    if (source.readyState !== EventSource.CLOSED) return;
    setTimeout(listen, 3000);
    try { if ((await fetch("stats")).status === 401) signIn(); } catch { /* it is stale, and says so */ }
  };
}

let saidTimer = 0;
function tell(text) { say("said", text); clearTimeout(saidTimer); saidTimer = setTimeout(() => say("said", ""), 6000); }

function signIn() {
  if (by("signIn").open) return Promise.resolve(false);
  say("signError", ""); by("token").value = ""; by("signIn").showModal(); by("token").focus();
  return new Promise((resolve) => by("signIn").addEventListener("close", () => resolve(signedIn), { once: true }));
}

async function ask(method, path) {
  let answer = await fetch(path, { method });
  if (answer.status === 401 && (await signIn())) answer = await fetch(path, { method });
  if (!answer.ok) throw new Error(await reason(answer));
  return answer;
}

async function reason(answer) {
  try { return (await answer.json()).detail; } catch { return `${answer.status} ${answer.statusText}`; }
}

function confirmed(title, text, yes) {
  const box = by("confirm");
  say("confirmTitle", title); say("confirmText", text); say("confirmYes", yes);
  box.returnValue = "no"; box.showModal(); by("confirmNo").focus();
  return new Promise((resolve) => box.addEventListener("close", () => resolve(box.returnValue === "yes"), { once: true }));
}

async function change(method, path, done) {
  try { await ask(method, path); tell(done); } catch (error) { tell(error.message); }
}

async function look(title, path, live) {
  const box = by("look"), text = by("lookText");
  let stream = null;
  try {
    if (!live) {
      const found = await (await ask("GET", path)).json();
      text.textContent = found.text || found.problem || "There is no stack to show.";
    }
    else { await ask("GET", path.replace(/\/logs$/, "")); text.textContent = ""; stream = follow(path, text); }
  } catch (error) { tell(error.message); return; }
  say("lookTitle", title); box.showModal();
  box.addEventListener("close", () => { if (stream) stream.close(); }, { once: true });
}

function follow(path, text) {
  const stream = new EventSource(path);
  const add = (event) => {
    const atEnd = text.scrollTop + text.clientHeight >= text.scrollHeight - 8;
    text.append(JSON.parse(event.data).text);
    if (atEnd) text.scrollTop = text.scrollHeight;
  };
  for (const name of ["output", "errors"]) stream.addEventListener(name, add);
  stream.addEventListener("end", () => stream.close());
  return stream;
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-do]");
  if (!button) return;
  const call = button.parentElement.dataset.call, instance = button.parentElement.dataset.instance, what = button.dataset.do;
  if (what === "Output") look(`Output of call ${call}`, `calls/${call}/logs`, true);
  if (what === "Stacks") look(`Stacks of call ${call}, now`, `calls/${call}/stack`, false);
  if (what === "Cancel" && (await confirmed(`Cancel call ${call}?`, "Its processes end, and its caller gets the error Cancelled.", "Cancel the call"))) change("DELETE", `calls/${call}`, `Call ${call} is cancelled.`);
  if (what === "Evict" && (await confirmed("Evict this instance?", `${instance} closes when its calls have finished; its state in memory is lost.`, "Evict it"))) change("DELETE", `instances/${encodeURIComponent(instance)}`, "The instance is being closed.");
});

by("drain").addEventListener("click", async () => {
  if (latest && latest.draining) { change("DELETE", "drain", "The server accepts new calls again."); return; }
  if (await confirmed("Drain this server?", "The server accepts no new calls; accepted calls finish. The server runs on until you stop it, and you can undo this.", "Drain it")) change("POST", "drain", "The server is draining.");
});
by("sign").addEventListener("click", async () => {
  if (!signedIn) { await signIn(); return; }
  await fetch("session", { method: "DELETE" }); signed(false); tell("You are signed out.");
});
by("signCancel").addEventListener("click", () => by("signIn").close());
by("signIn").querySelector("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const answer = await fetch("session", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ token: by("token").value.trim() }) });
  if (!answer.ok) { say("signError", await reason(answer)); by("token").focus(); return; }
  signed(true); by("signIn").close(); listen();
});
function signed(yes) { signedIn = yes; say("sign", yes ? "Sign out" : "Sign in"); }

fetch("session").then((answer) => answer.json()).then((found) => signed(found.signed_in)).catch(() => { /* the state says so */ });
listen();
setInterval(showState, 1000);
