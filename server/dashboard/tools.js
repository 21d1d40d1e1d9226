// What one can do on the page: ask, fill the pool, plan, look at attention.
import { errorText, readEvents } from "/page/feed.js";
import { AttentionSquare, requestColor } from "/page/draw.js";
import { $, bytes, make, percent, put, whole } from "/page/text.js";

const post = (path, body, headers, signal) =>
  fetch(path, { method: "POST", signal, headers: { ...headers, "Content-Type": "application/json" }, body: JSON.stringify(body) });

// Runs `work(signal)` while the form's start button is off and its stop button on.
function stoppable(form, startButton, stopButton, work) {
  let running = null;
  stopButton.addEventListener("click", () => running?.abort());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running) return;
    running = new AbortController();
    startButton.disabled = true;
    stopButton.disabled = false;
    try {
      await work(running.signal);
    } finally {
      running = null;
      startButton.disabled = false;
      stopButton.disabled = true;
    }
  });
}

function usageText(usage) {
  const kv = usage.kv_cache;
  const cached = usage.prompt_tokens_details?.cached_tokens;
  return `${whole(usage.prompt_tokens)} tokens read${cached ? ` (${whole(cached)} were cached)` : ""}, ${whole(usage.completion_tokens)} written. ` +
    (kv ? `They took ${bytes(kv.bytes)} in ${whole(kv.pages)} pages; MHA would have taken ${bytes(kv.mha_equivalent_bytes)}.` : "");
}

function setUpPrompt(headers) {
  const answer = $("answer");
  stoppable($("prompt-form"), $("send"), $("stop"), async (signal) => {
    const chat = !$("chat-label").hidden && $("chat").checked;
    const prompt = $("prompt").value;
    const common = { max_tokens: Number($("max-tokens").value), temperature: 0, stream: true, stream_options: { include_usage: true } };
    answer.classList.remove("error");
    answer.textContent = "";
    put($("usage"), "…");
    const fail = (text) => {
      answer.classList.add("error");
      answer.textContent += text;
      put($("usage"), "\u00a0");
    };
    try {
      const response = chat ? await post("/v1/chat/completions", { messages: [{ role: "user", content: prompt }], ...common }, headers(), signal)
        : await post("/v1/completions", { prompt, ...common }, headers(), signal);
      if (!response.ok) return fail(await errorText(response));
      for await (const event of readEvents(response)) {
        if (event === "[DONE]") break;
        const data = JSON.parse(event);
        if (data.error) return fail(data.error.message);
        for (const choice of data.choices) answer.append(choice.text ?? choice.delta?.content ?? "");
        answer.scrollTop = answer.scrollHeight;
        if (data.usage) put($("usage"), usageText(data.usage));
      }
    } catch {
      if (signal.aborted) put($("usage"), "Stopped: its pages are free again.");
      else fail("The connection was lost.");
    }
  });
}

// One request with many prompts of random tokens, no two alike: nothing is shared, so the pool fills as it would with strangers.
function setUpLoad(headers, model) {
  stoppable($("load-form"), $("load-start"), $("load-stop"), async (signal) => {
    const { vocab_size: vocabulary, context_tokens: context } = model();
    const count = Number($("load-requests").value);
    const tokens = Math.min(Number($("load-tokens").value), context);
    const written = Math.max(1, Math.floor(tokens / 4));
    const prompt = Array.from({ length: count }, () => Array.from({ length: Math.max(1, tokens - written) }, () => Math.floor(Math.random() * vocabulary)));
    put($("load-note"), `${whole(count)} requests, ${whole(tokens - written)} tokens to read and ${whole(written)} to write each`);
    try {
      const response = await post("/v1/completions", { prompt, max_tokens: written, ignore_eos: true, temperature: 0, stream: true }, headers(), signal);
      if (!response.ok) return put($("load-note"), await errorText(response));
      for await (const event of readEvents(response)) {
        const error = event !== "[DONE]" && JSON.parse(event).error;
        if (error) return put($("load-note"), error.message);
      }
      put($("load-note"), "Done.");
    } catch {
      put($("load-note"), signal.aborted ? "Stopped." : "The connection was lost.");
    }
  });
}

function setUpAttention(headers) {
  $("attention-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const result = $("attention-result");
    const say = (text) => result.replaceChildren(make("p", "sub", text));
    say("…");
    const response = await post("/v1/attention", { prompt: $("attention-prompt").value, layer: Number($("attention-layer").value) }, headers()).catch(() => null);
    if (!response) return say("The connection was lost.");
    if (!response.ok) {
      const body = await response.clone().json().catch(() => null);
      const off = response.status === 404 || body?.error?.code === "introspection_off";
      return say(off ? "This server does not show attention. Start it with --introspection true." : await errorText(response));
    }
    showHeads(await response.json(), result);
  });
}

const quoted = (token) => `“${token.trim() || token}”`;

function showHeads({ tokens, layer, layers, kv_heads: groups, heads }, result) {
  const hint = `Layer ${layer + 1} of ${layers}, ${tokens.length} tokens. A row is a token; the stronger a square in it, the more it looks there.`;
  const caption = make("p", "sub", hint);
  const frames = make("div", "heads");
  for (let group = 0; group < groups; ++group) {
    const color = requestColor(4 + group);
    const frame = make("div", "group"), squares = make("div"), title = make("p");
    frame.style.borderColor = color;
    title.append(`KV head ${group}`);
    for (const head of heads.filter((one) => one.kv_head === group)) {
      const box = make("div", "head"), canvas = make("canvas");
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `Query head ${head.query_head}: what each of ${tokens.length} tokens looks at`);
      canvas.tabIndex = 0;
      box.append(canvas, make("p", "", `query head ${head.query_head}`));
      squares.append(box);
      new AttentionSquare(canvas, head.rows, (i, j) => put(caption, i < 0 ? hint : `Query head ${head.query_head}: ` +
        `${quoted(tokens[i])} gives ${percent(head.rows[i][j])} of its attention to ${i === j ? "itself" : quoted(tokens[j])}`));
    }
    frame.append(title, squares);
    frames.append(frame);
  }
  result.replaceChildren(caption, frames);
}

// The stops of a slider: 1, 1.5, 2, 3, 4, 6, 8 … between two bounds, both included.
function stops(first, last) {
  const all = [];
  for (let power = 1; power <= last; power *= 2) all.push(power, power * 1.5);
  return [first, ...all.filter((stop) => Number.isInteger(stop) && stop > first && stop < last), last];
}

// GET /v1/capacity: the arithmetic is the server's, here are sliders and bars.
function setUpPlan(headers) {
  const sliders = { context: [], concurrency: stops(1, 1024), heads: [] };
  const slider = (name) => $(`plan-${name}`);
  const value = (name) => sliders[name][Number(slider(name).value)];
  const setStops = (name, all, wanted) => {
    sliders[name] = all;
    slider(name).max = String(all.length - 1);
    slider(name).value = String(all.findLastIndex((stop) => stop <= wanted));
  };
  let asking = null;

  const bar = (title, variant, most, pool, own) => {
    const { concurrency_max: atMost, fits } = variant.budgets[0];
    const track = make("div", "bar"), fill = make("i", fits ? "" : "over"), limit = make("s");
    fill.style.width = `${(variant.needed_bytes / most) * 100}%`;
    limit.style.left = `${(pool / most) * 100}%`;
    track.append(fill, limit);
    const name = make("span", own ? "own" : "", title);
    return [name, track, make("b", "", bytes(variant.needed_bytes)), make("span", "", fits ? "fits" : `${whole(atMost)} at most`)];
  };

  async function ask() {
    asking?.abort();
    asking = new AbortController();
    const query = sliders.heads.length
      ? new URLSearchParams({ context: value("context"), concurrency: value("concurrency"), kv_heads: value("heads"), kv_dtype: $("plan-dtype").value }) : "";
    const response = await fetch(`/v1/capacity?${query}`, { headers: headers(), signal: asking.signal }).catch(() => null);
    if (!response) return;
    if (!response.ok) return $("plan-result").replaceChildren(make("p", "sub", await errorText(response)));
    const plan = await response.json();
    if (!sliders.heads.length) {
      setStops("context", stops(plan.page_tokens * 8, plan.context_tokens_max), 4096);
      setStops("concurrency", sliders.concurrency, 24);
      setStops("heads", [...plan.heatmap.kv_heads].reverse(), plan.planned.kv_heads);
      $("plan-dtype").replaceChildren(...["int8", "bf16", "fp16", "fp32"].map((type) => make("option", "", type)));
      $("plan-dtype").value = plan.kv_dtype;
      return ask();
    }
    show(plan);
  }

  function show({ context_tokens: context, concurrency, query_heads: heads, planned, mha, mqa }) {
    put($("plan-context-text"), `${whole(context)} tokens`);
    put($("plan-concurrency-text"), whole(concurrency));
    put($("plan-heads-text"), `${planned.kv_heads} of ${heads}`);
    slider("context").setAttribute("aria-valuetext", `${whole(context)} tokens`);
    slider("concurrency").setAttribute("aria-valuetext", `${whole(concurrency)} requests`);
    slider("heads").setAttribute("aria-valuetext", `${planned.kv_heads} of ${heads}`);
    const { pool_bytes: pool, fits, concurrency_max: atMost, longest_request_tokens: longest } = planned.budgets[0];
    const verdict = make("p", `verdict${fits ? "" : " no"}`);
    verdict.textContent = `${whole(concurrency)} ${concurrency === 1 ? "request" : "requests"} of ${whole(context)} tokens ` +
      `${concurrency === 1 ? "needs" : "need"} ${bytes(planned.needed_bytes)}: ${fits ? `fits into the pool of ${bytes(pool)}` : `too much for the pool of ${bytes(pool)}`}`;
    const most = Math.max(mha.needed_bytes, pool);
    const bars = make("div", "bars");
    bars.append(...bar(`MHA, ${mha.kv_heads}`, mha, most, pool),
      ...(planned.kv_heads === mha.kv_heads || planned.kv_heads === 1 ? [] : bar(`GQA, ${planned.kv_heads}`, planned, most, pool, true)),
      ...(heads > 1 ? bar(`MQA, ${mqa.kv_heads}`, mqa, most, pool) : []));
    $("plan-result").replaceChildren(verdict, bars,
      make("p", "sub", `The line is the pool. Room for ${whole(atMost)} such ${atMost === 1 ? "request" : "requests"} at once, or for one of ${whole(longest)} tokens.`));
  }

  $("plan-form").addEventListener("input", ask);
  return { start: () => { if (!sliders.heads.length) ask(); } };
}

export function setUpTools(headers) {
  let model = null;
  setUpPrompt(headers);
  setUpLoad(headers, () => model);
  setUpAttention(headers);
  const plan = setUpPlan(headers);
  return {
    showModel(shown) {
      model = shown;
      plan.start();
      $("chat-label").hidden = !model.chat;
      $("load-tokens").max = String(model.context_tokens);
      const layers = $("attention-layer");
      if (layers.options.length !== model.layers) {
        layers.replaceChildren(...Array.from({ length: model.layers }, (_, i) => {
          const option = make("option", "", String(i + 1));
          option.value = String(i);
          return option;
        }));
        layers.value = String(model.layers - 1);
      }
    },
  };
}
