// The top of the page: bytes by state, what MHA would take for the same tokens, the map; and the table of requests.
import { PoolMap, CACHED, FREE, LIVE, SHARED, requestColor } from "/page/draw.js";
import { $, ago, bytes, duration, headsText, make, percent, put, rate, times, whole } from "/page/text.js";

let feed = null;
let pinned = null;   // the request whose pages stand out until it is let go
let stoppedAt = null;  // when this page first saw more in use than MHA would have had room for

const map = new PoolMap($("map"), describe);

function describe(index) {
  if (!feed?.model || index < 0) return put($("map-caption"), mapHint());
  const { model, cells, frame } = feed;
  const first = index * model.pages_per_cell;
  const last = Math.min(first + model.pages_per_cell, model.pages) - 1;
  const where = first === last ? `Page ${whole(first)}` : `Pages ${whole(first)} to ${whole(last)}`;
  const value = cells[index];
  const owner = frame.requests?.find((request) => request.cell === value);
  const state = value === FREE ? "free" : value === CACHED ? "cached, for a prompt with the same beginning" : value === LIVE ? "in use"
    : value === SHARED ? "shared by several requests" : owner ? `request ${owner.id}` : "in use";
  put($("map-caption"), `${where}: ${state}`);
}

function mapHint() {
  if (!feed?.model) return "";
  const { pages, pages_per_cell: per, page_tokens: tokens, page_bytes: size } = feed.model;
  return per === 1 ? `${whole(pages)} pages of ${tokens} tokens, ${bytes(size)} each`
    : `${whole(pages)} pages of ${tokens} tokens, ${bytes(size)} each; a square stands for ${per}`;
}

function showModel(model) {
  const ratio = model.mha_token_bytes / model.token_bytes;
  const claim = $("claim");
  claim.replaceChildren(`${headsText(model)}: `, make("em", "", ratio > 1 ? `${times(ratio)} less memory` : "the full cache"));
  put($("per-token"), `A token takes ${whole(model.token_bytes)} bytes in ${model.layers} layers, kept as ${model.kv_dtype}. ` +
    (ratio > 1 ? `Multi-head attention (MHA), where every head holds its own, would take ${whole(model.mha_token_bytes)}.`
      : "This is multi-head attention (MHA), which grouped-query attention is measured by."));
  put($("model-name"), model.name);
  document.title = `${model.name} · Headroom`;
  put($("foot"), `Headroom ${model.version}. The same figures, for machines: /metrics, /v1/live.`);
  $("mha-mark").hidden = $("mha-figure").hidden = ratio <= 1;
  const share = 1 / ratio;
  $("mha-mark").style.left = `${share * 100}%`;
  $("mha-mark").classList.toggle("flip", share > 0.6);
  put($("free-note"), `pool of ${bytes(model.pages * model.page_bytes)}, ${whole(model.pages * model.page_tokens)} tokens`);
  put($("map-caption"), mapHint());
}

function showBytes({ model, frame }) {
  const { live, cached, free } = frame.pages;
  const size = model.page_bytes;
  $("part-live").style.width = `${(live / model.pages) * 100}%`;
  $("part-cached").style.width = `${(cached / model.pages) * 100}%`;
  put($("live-bytes"), bytes(live * size));
  put($("live-note"), `${percent(live / model.pages)}, ${whole(frame.live_tokens)} tokens`);
  put($("cached-bytes"), bytes(cached * size));
  put($("free-bytes"), bytes(free * size));

  const ratio = model.mha_token_bytes / model.token_bytes;
  const need = live * ratio;  // in pages of this size
  const mhaTokens = Math.floor(model.pages / ratio) * model.page_tokens;
  const over = need > model.pages;
  if (over) stoppedAt ??= performance.now();
  put($("mha-bytes"), bytes(need * size));
  put($("mha-note"), `${percent(need / model.pages)} of the pool${over ? ": it would not fit" : ""}`);
  $("mha-figure").classList.toggle("over", over);
  const passed = stoppedAt !== null && `MHA was full here at ${whole(mhaTokens)} tokens, ${ago(performance.now() - stoppedAt)}`;
  put($("mha-text"), passed || `MHA would be full here, at ${whole(mhaTokens)} tokens`);
  $("track").setAttribute("aria-label", `Of the pool ${percent(live / model.pages)} is in use, ${percent(cached / model.pages)} cached, ` +
    `${percent(free / model.pages)} free. MHA would be full at ${percent(1 / ratio)}.`);
}

function stateText(request) {
  if (request.state === "decode") return "writing";
  if (request.state === "prefill") {
    const done = Math.floor((request.computed / request.prompt) * 100);
    return done < 100 ? `reading, ${done} %` : "reading again";
  }
  return request.preemptions ? "made room, waits" : "waiting";
}

const rows = new Map();  // by id
const kTableMs = 200;    // five a second are as many as one can read
let shownRequests = "", shownAt = -Infinity;

function makeRow(request) {
  const row = make("tr");
  const button = make("button");
  button.type = "button";
  button.title = "Show its pages alone";
  const swatch = make("i", "swatch");
  swatch.style.background = requestColor(request.cell);
  button.append(swatch, String(request.id));
  const cells = [make("td"), make("td"), make("td", "n"), make("td", "n"), make("td", "n extra"), make("td", "n extra"), make("td", "n"), make("td", "n extra")];
  cells[0].append(button);
  cells[2].append(make("span", "extra"), make("span", "narrow"));
  row.append(...cells);
  row.addEventListener("pointerenter", () => map.show(request.cell));
  row.addEventListener("pointerleave", () => map.show(pinned));
  button.addEventListener("focus", () => map.show(request.cell));
  button.addEventListener("blur", () => map.show(pinned));
  button.addEventListener("click", () => {
    pinned = pinned === request.cell ? null : request.cell;
    map.show(pinned);
  });
  return { row, cells };
}

function showRequests({ model, frame }) {
  const body = $("requests").tBodies[0];
  const requests = frame.requests ?? [];
  const now = performance.now(), which = requests.map(({ id, state }) => `${id} ${state}`).join();
  if (which === shownRequests && requests.length && now - shownAt < kTableMs) return;
  [shownRequests, shownAt] = [which, now];
  const seen = new Set(requests.map((request) => request.id));
  for (const [id, { row }] of rows) if (!seen.has(id)) { row.remove(); rows.delete(id); }
  if (pinned !== null && !requests.some((request) => request.cell === pinned)) { pinned = null; map.show(null); }
  requests.forEach((request, index) => {
    if (!rows.has(request.id)) rows.set(request.id, makeRow(request));
    const { row, cells } = rows.get(request.id);
    if (body.children[index] !== row) body.insertBefore(row, body.children[index] ?? null);
    const size = request.pages * model.page_bytes;
    put(cells[1], stateText(request));
    put(cells[2].firstChild, request.generated ? `${whole(request.prompt)} + ${whole(request.generated)}` : whole(request.prompt));
    put(cells[2].lastChild, whole(request.prompt + request.generated));
    put(cells[3], bytes(size, true));
    put(cells[4], bytes(size * (model.mha_token_bytes / model.token_bytes), true));
    put(cells[5], whole(request.pages));
    put(cells[6], request.decode_ms > 200 ? rate((request.generated * 1000) / request.decode_ms) : "–");
    put(cells[7], duration(request.ms));
  });
  const total = frame.running + frame.waiting;
  put($("request-counts"), total ? `${whole(frame.running)} running, ${whole(frame.waiting)} waiting` +
    (total > requests.length && requests.length ? `; the oldest ${requests.length} are shown` : "") : "");
  $("requests").hidden = requests.length === 0;
  $("no-requests").hidden = requests.length > 0;
  put($("no-requests"), total && !model.requests_shown ? "This server does not show single requests: those of other keys are nobody's business."
    : "Nothing runs. Ask something below, or fill the pool.");
}

export function showMemory(shown, runs) {
  feed = shown;
  if (feed.frame.model) showModel(feed.model);
  showBytes(feed);
  map.update(feed.cells, runs === null || runs.length > 0);
  showRequests(feed);
}
