// Several servers side by side, each by its own feed. The operator names them: --peers.
import { Feed, Rates } from "/page/feed.js";
import { PoolMap } from "/page/draw.js";
import { $, bytes, headsText, make, percent, put, rate, whole } from "/page/text.js";

const rowsOf = [
  ["Bytes of a token", ({ model }) => whole(model.token_bytes)],
  ["Longest request", ({ model }) => `${whole(model.context_tokens)} tokens`],
  ["Tokens held", ({ frame }) => whole(frame.live_tokens)],
  ["Requests", ({ frame }) => `${whole(frame.running)} running, ${whole(frame.waiting)} waiting`],
  ["Had to make room", ({ frame }) => `${whole(frame.preemptions)} ${frame.preemptions === 1 ? "time" : "times"}`],
  ["Tokens per second", (tile) => rate(tile.rates.written)],
  ["From token to token", (tile) => (tile.rates.between === null ? "–" : `${rate(tile.rates.between)} ms`)],
];

class Tile {
  constructor({ name, url }, changed) {
    this.box = make("section", "card tile");
    this.box.setAttribute("aria-label", name);
    const canvas = make("canvas", "map");
    canvas.setAttribute("role", "img");
    this.canvas = canvas;
    this.status = make("p", "sub", "connecting");
    this.track = make("div", "track");
    this.live = make("span", "part live");
    this.cached = make("span", "part cached");
    this.track.append(this.live, this.cached);
    this.list = make("dl");
    this.values = rowsOf.map(([title]) => {
      const value = make("dd", "", "–");
      this.list.append(make("dt", "", title), value);
      return value;
    });
    const frame = make("div", "frame");
    frame.append(canvas);
    this.useText = make("p", "state");
    this.roomText = make("p", "state");
    const room = make("div", "room");
    this.room = make("i");
    room.append(this.room);
    this.box.append(make("h3", "", name), this.status, frame, this.useText, this.track, this.roomText, room, this.list);
    this.map = new PoolMap(canvas);
    this.meter = new Rates();
    const base = url.startsWith(":") ? `${location.protocol}//${location.hostname}${url}` : url;
    this.feed = new Feed(base === location.origin ? "" : base, {
      onFrame: (feed, runs) => { this.show(feed, runs); changed(); },
      onStatus: (state, text) => put(this.status, text),
    });
  }

  get tokens() { return this.feed.model ? this.feed.model.pages * this.feed.model.page_tokens : 0; }

  show({ model, frame, cells }, runs) {
    this.rates = this.meter.add(frame);
    put(this.status, headsText(model));
    this.map.update(cells, runs === null || runs.length > 0);
    this.canvas.setAttribute("aria-label", `${percent(frame.pages.live / model.pages)} of ${whole(model.pages)} pages in use`);
    put(this.useText, `${bytes(frame.pages.live * model.page_bytes)} in use, ${percent(frame.pages.live / model.pages)}`);
    this.live.style.width = `${(frame.pages.live / model.pages) * 100}%`;
    this.cached.style.width = `${(frame.pages.cached / model.pages) * 100}%`;
    rowsOf.forEach(([, text], i) => put(this.values[i], text({ model, frame, rates: this.rates })));
  }

  showRoom(most) {
    if (!this.feed.model) return;
    const pool = bytes(this.feed.model.pages * this.feed.model.page_bytes);
    put(this.roomText, `${pool} hold ${whole(this.tokens)} tokens`);
    this.room.style.width = `${(this.tokens / most) * 100}%`;
  }
}

export function setUpCompare() {
  let peers = [];
  let running = null;
  return {
    get available() { return peers.length > 0; },
    async load(headers) {
      const response = await fetch("/v1/live/peers", { headers }).catch(() => null);
      peers = response?.ok ? (await response.json()).peers : [];
    },
    start() {
      running = new AbortController();
      const tiles = peers.map((peer) => new Tile(peer, () => {
        const most = Math.max(...tiles.map((tile) => tile.tokens));
        for (const tile of tiles) tile.showRoom(most);
      }));
      $("tiles").replaceChildren(...tiles.map((tile) => tile.box));
      for (const tile of tiles) tile.feed.run(running.signal);
    },
    stop() { running?.abort(); running = null; },
  };
}
