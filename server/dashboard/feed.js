// GET /v1/live of one server: server-sent events read with fetch, because EventSource can send no key.
//
// A frame is the engine between two steps. Its map of the pool has a byte for each cell: 0 free, 1 cached, 2 live, 3 shared by several
// requests, else a request's colour. The first frame has all of them (cells, base64), later ones what has changed (runs: first, count, value).

export async function* readEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (let rest = ""; ;) {
      const { done, value } = await reader.read();
      if (done) return;
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) if (event.startsWith("data: ")) yield event.slice(6);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

export async function errorText(response) {
  const body = await response.json().catch(() => null);
  return body?.error?.message ?? `the server answered ${response.status}`;
}

export class Feed {
  // headers(): of the request. onFrame(feed, runs): runs is null when every cell is new. onStatus(state, text).
  constructor(base, { headers = () => ({}), onFrame, onStatus }) {
    Object.assign(this, { base, headers, onFrame, onStatus });
    this.cells = new Uint8Array();
    this.model = this.frame = null;
  }

  async run(signal) {
    while (!signal.aborted) {
      try {
        await this.watch(signal);
        this.onStatus("trouble", "the server has ended");
      } catch (error) {
        if (signal.aborted) return;
        this.onStatus("trouble", error.status ? error.message : "no connection; trying again");
      }
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }

  async watch(signal) {
    const response = await fetch(`${this.base}/v1/live`, { signal, headers: this.headers(), cache: "no-store" });
    if (!response.ok) throw Object.assign(new Error(await errorText(response)), { status: response.status });
    for await (const event of readEvents(response)) this.take(JSON.parse(event));
  }

  take(frame) {
    if (frame.model) {
      this.model = frame.model;
      this.cells = Uint8Array.from(atob(frame.cells), (c) => c.charCodeAt(0));
    } else {
      for (let i = 0; i < frame.runs.length; i += 3) {
        this.cells.fill(frame.runs[i + 2], frame.runs[i], frame.runs[i] + frame.runs[i + 1]);
      }
    }
    this.frame = frame;
    this.onFrame(this, frame.model ? null : frame.runs);
  }
}

// Rates over the last second, from totals.
export class Rates {
  constructor() { this.samples = []; }

  add(frame) {
    const samples = this.samples;
    const last = samples[samples.length - 1];
    if (last && (frame.ms < last.ms || frame.generated_tokens < last.generated_tokens)) samples.length = 0;  // it was started anew
    samples.push(frame);
    while (samples.length > 2 && frame.ms - samples[1].ms >= 1000) samples.shift();
    const first = samples[0];
    const seconds = (frame.ms - first.ms) / 1000;
    const mean = (sum, count) => (frame[count] > first[count] ? ((frame[sum] - first[sum]) / (frame[count] - first[count])) * 1000 : null);
    return {
      written: seconds > 0 ? (frame.generated_tokens - first.generated_tokens) / seconds : 0,
      read: seconds > 0 ? (frame.prefill_tokens - first.prefill_tokens) / seconds : 0,
      between: mean("next_token_seconds", "next_tokens"),
      first: mean("first_token_seconds", "first_tokens"),
    };
  }
}
