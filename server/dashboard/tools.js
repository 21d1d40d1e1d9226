// What one can do on the page: ask, fill the pool, plan, look at attention.
import { errorText, readEvents } from "/page/feed.js";
import { AttentionSquare, requestColor } from "/page/draw.js";
import { $, bytes, make, put, times, whole } from "/page/text.js";

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

function showHeads({ tokens, layer, layers, kv_heads: groups, heads }, result) {
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
      box.append(canvas, make("p", "", `query head ${head.query_head}`));
      squares.append(box);
      new AttentionSquare(canvas, head.rows);
    }
    frame.append(title, squares);
    frames.append(frame);
  }
  result.replaceChildren(make("p", "sub", `Layer ${layer} of ${layers}, ${tokens.length} tokens. A row is a token; the darker a square in it, the more it looks there.`), frames);
}

export function setUpTools(headers) {
  let model = null;
  setUpPrompt(headers);
  setUpLoad(headers, () => model);
  setUpAttention(headers);
  return {
    showModel(shown) {
      model = shown;
      $("chat-label").hidden = !model.chat;
      $("load-tokens").max = String(model.context_tokens);
      const layers = $("attention-layer");
      if (layers.options.length !== model.layers) {
        layers.replaceChildren(...Array.from({ length: model.layers }, (_, i) => make("option", "", String(i))));
        layers.value = String(model.layers - 1);
      }
    },
  };
}
