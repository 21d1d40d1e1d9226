// The page: joins the feed to what shows it. One update for each frame of the feed, at most ten a second.
import { Feed, Rates } from "/page/feed.js";
import { LineChart, themeChanged } from "/page/draw.js";
import { showMemory } from "/page/memory.js";
import { setUpTools } from "/page/tools.js";
import { setUpCompare } from "/page/compare.js";
import { $, make, put, rate } from "/page/text.js";

let key = sessionStorage.getItem("headroom-key") ?? "";
const headers = () => (key ? { Authorization: `Bearer ${key}` } : {});

const rates = new Rates();
const charts = [
  ["written", "Written", "tokens/s"],
  ["read", "Read, of prompts", "tokens/s"],
  ["between", "From token to token", "ms"],
  ["first", "To the first token", "ms"],
].map(([field, title, unit]) => {
  const box = make("div", "chart"), value = make("p"), number = make("span", "", "–"), shownUnit = make("small", "", unit);
  const canvas = make("canvas");
  value.append(number, " ", shownUnit);
  canvas.setAttribute("role", "img");
  box.append(make("h3", "", title), value, canvas);
  $("charts").append(box);
  return { field, title, unit, number, shownUnit, canvas, line: new LineChart(canvas) };
});

function showSpeed(frame) {
  const now = rates.add(frame);
  for (const { field, title, unit, number, shownUnit, canvas, line } of charts) {
    line.add(frame.ms, now[field]);
    if (now[field] === null) continue;  // what it was when it last could be told stays
    const inSeconds = unit === "ms" && now[field] >= 10000;
    put(number, rate(inSeconds ? now[field] / 1000 : now[field]));
    put(shownUnit, inSeconds ? "s" : unit);
    canvas.setAttribute("aria-label", `${title}, last minute; now ${number.textContent} ${shownUnit.textContent}`);
  }
}

function showStatus(state, text) {
  $("status").dataset.state = state;
  put($("status"), text);
  $("key-form").hidden = !/API key/.test(text);
}

function showFrame(feed, runs) {
  const began = performance.now();
  const { frame, model } = feed;
  showStatus(frame.fault || frame.draining ? "trouble" : "live", frame.fault ? "the model has failed" : frame.draining ? "draining" : "live");
  showMemory(feed, runs);
  showSpeed(frame);
  if (frame.model) tools.showModel(model);
  // For whoever measures: how long an update took.
  document.dispatchEvent(new CustomEvent("headroom-frame", { detail: { ms: performance.now() - began, cells: feed.cells.length } }));
}

function setUpTheme() {
  const themes = ["", "light", "dark"];
  let theme = localStorage.getItem("headroom-theme") ?? "";
  const apply = () => {
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
    put($("theme"), { "": "Auto", light: "Light", dark: "Dark" }[theme]);
    $("theme").setAttribute("aria-label", `Theme: ${theme || "as the system"}`);
    themeChanged();
  };
  $("theme").addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    localStorage.setItem("headroom-theme", theme);
    apply();
  });
  apply();
}

const tools = setUpTools(headers);
const feed = new Feed("", { headers, onFrame: showFrame, onStatus: showStatus });
setUpTheme();

// One view at a time; the other asks for nothing.
let own = null;
const compare = setUpCompare();
function route() {
  const comparing = location.hash === "#compare" && compare.available;
  $("server").hidden = comparing;
  $("compare").hidden = !comparing;
  for (const link of $("views").children) {
    if (link.hash === (comparing ? "#compare" : "#server")) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  own?.abort();
  own = null;
  compare.stop();
  if (comparing) {
    compare.start();
    showStatus("live", "comparing");
  } else {
    own = new AbortController();
    feed.run(own.signal);
  }
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  sessionStorage.setItem("headroom-key", key);
  start();
});
addEventListener("hashchange", () => { if (location.hash !== "#memory") route(); });

async function start() {
  await compare.load(headers());
  $("views").hidden = !compare.available;
  route();
}
start();
