#include "server/live_feed.h"

#include <algorithm>

#include "kernels/check.h"
#include "server/json_writer.h"
#include "server/sse.h"

namespace headroom {
namespace {

// A step of the model may take longer; the latest picture is shown again then.
constexpr std::chrono::milliseconds kViewWaitMax{50};

void write_model(const ServedModel& served, const LiveFeedOptions& options, const SchedulerView& view, JsonWriter* json) {
  const KvShape& shape = served.engine.kv_shape();
  const SchedulerOptions& scheduler = served.engine.options().scheduler;
  json->key("model").begin_object().key("name").string(options.model_name).key("version").string(options.version);
  json->key("layers").integer(shape.layers).key("kv_heads").integer(shape.kv_heads).key("query_heads").integer(shape.query_heads);
  json->key("head_dim").integer(shape.head_dim).key("kv_dtype").string(dtype_name(shape.dtype));
  json->key("token_bytes").integer(shape.token_bytes()).key("mha_token_bytes").integer(shape.mha_token_bytes());
  json->key("page_tokens").integer(shape.page_tokens).key("page_bytes").integer(shape.page_bytes());
  json->key("pages").integer(scheduler.pages_total).key("pages_per_cell").integer(view.pages_per_cell);
  json->key("context_tokens").integer(scheduler.context_tokens_max).key("vocab_size").integer(served.engine.vocab_size());
  json->key("chat").boolean(served.chat_template != nullptr).key("requests_shown").boolean(options.show_requests).end_object();
}

void write_state(const EngineStats& stats, JsonWriter* json) {
  json->key("pages").begin_object().key("free").integer(stats.pages.free).key("cached").integer(stats.pages.cached);
  json->key("live").integer(stats.pages.live).end_object();
  json->key("live_tokens").integer(stats.live_tokens);
  json->key("running").integer(stats.requests_running).key("waiting").integer(stats.requests_waiting);
  json->key("generated_tokens").integer(stats.generated_tokens);
  json->key("prefill_tokens").integer(stats.prefill_tokens).key("prompt_tokens_cached").integer(stats.prompt_tokens_cached);
  json->key("preemptions").integer(stats.preemptions);
  json->key("first_tokens").integer(stats.first_tokens).key("first_token_seconds").number(stats.first_token_seconds);
  json->key("next_tokens").integer(stats.next_tokens).key("next_token_seconds").number(stats.next_token_seconds);
  json->key("draining").boolean(stats.draining).key("fault").boolean(stats.faulted);
}

void write_requests(const LiveView& view, JsonWriter* json) {
  static constexpr const char* kStates[] = {"waiting", "prefill", "decode"};
  json->key("requests").begin_array();
  for (size_t i = 0; i < view.scheduler.requests.size(); ++i) {
    const SchedulerView::Request& request = view.scheduler.requests[i];
    const LiveView::Times& times = view.times[i];
    json->begin_object().key("id").integer(static_cast<int64_t>(request.id)).key("cell").integer(cell_of(request.id));
    json->key("state").string(kStates[static_cast<size_t>(request.state)]).key("choices").integer(request.choices);
    json->key("prompt").integer(request.prompt_tokens).key("cached").integer(request.cached_tokens);
    json->key("computed").integer(request.computed_tokens).key("generated").integer(times.generated_tokens);
    json->key("pages").integer(request.pages).key("preemptions").integer(request.preemptions);
    json->key("ms").integer(static_cast<int64_t>(times.seconds * 1e3));
    json->key("decode_ms").integer(static_cast<int64_t>(times.decode_seconds * 1e3)).end_object();
  }
  json->end_array();
}

// Whose a page is does not show where requests do not.
std::vector<uint8_t> shown_cells(const SchedulerView& view, bool show_requests) {
  std::vector<uint8_t> cells = view.cells;
  if (!show_requests) std::ranges::for_each(cells, [](uint8_t& cell) { cell = std::min(cell, kCellLive); });
  return cells;
}

}  // namespace

std::string cells_base64(const std::vector<uint8_t>& cells) {
  static constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  text.reserve((cells.size() + 2) / 3 * 4);
  for (size_t i = 0; i < cells.size(); i += 3) {
    const size_t bytes = std::min<size_t>(3, cells.size() - i);
    uint32_t bits = 0;
    for (size_t b = 0; b < 3; ++b) bits = bits << 8 | (b < bytes ? cells[i + b] : 0u);
    for (size_t d = 0; d < 4; ++d) text += d <= bytes ? kDigits[bits >> (18 - 6 * d) & 63] : '=';
  }
  return text;
}

std::vector<int64_t> changed_runs(const std::vector<uint8_t>& from, const std::vector<uint8_t>& to) {
  CHECK_EQ(from.size(), to.size());
  std::vector<int64_t> runs;
  for (size_t i = 0; i < to.size(); ++i) {
    if (from[i] == to[i]) continue;
    const size_t first = i;
    while (i + 1 < to.size() && to[i + 1] == to[first] && from[i + 1] != to[i + 1]) ++i;
    runs.insert(runs.end(), {static_cast<int64_t>(first), static_cast<int64_t>(i + 1 - first), to[first]});
  }
  return runs;
}

void LiveFeed::watch(const ServedPtr& served, HttpStream* stream) {
  int64_t seen = 0;
  for (bool more = true; more;) {
    const std::shared_ptr<const Frame> frame = next(*served, seen);
    const bool follows = seen + 1 == frame->number && !frame->changes.empty();
    more = stream->write(follows ? frame->changes : frame->whole) && !frame->last;
    seen = frame->number;
  }
}

std::string LiveFeed::picture(const ServedPtr& served) {
  const std::string event = next(*served, 0)->whole;
  return event.substr(kSseEventBegin.size(), event.size() - kSseEventBegin.size() - kSseEventEnd.size());
}

std::shared_ptr<const LiveFeed::Frame> LiveFeed::next(const ServedModel& served, int64_t seen) {
  std::unique_lock lock(mutex_);
  while (true) {
    const Clock::time_point now = Clock::now();
    if (now >= due_) {
      due_ = now + options_.period;
      if (frame_ == nullptr || !is_quiet(served) || now >= made_at_ + options_.quiet_period) {
        made_at_ = now;
        make_frame(served);
        made_.notify_all();
      }
    }
    if (frame_ != nullptr && frame_->number > seen) return frame_;
    made_.wait_until(lock, due_);
  }
}

// Nothing runs, and nothing has happened since the latest frame.
bool LiveFeed::is_quiet(const ServedModel& served) const {
  const EngineStats now = served.engine.stats();
  const EngineStats& shown = view_->stats;
  return !now.work_pending && now.steps == shown.steps && now.requests_running + shown.requests_running == 0 &&
         now.requests_waiting + shown.requests_waiting == 0 && now.pages.live == shown.pages.live && now.draining == shown.draining;
}

void LiveFeed::make_frame(const ServedModel& served) {
  view_ = served.engine.live_view(kViewWaitMax);
  std::vector<uint8_t> cells = shown_cells(view_->scheduler, options_.show_requests);
  auto frame = std::make_shared<Frame>();
  frame->number = ++frames_;
  frame->last = view_->stats.draining && !view_->stats.work_pending;
  append_sse_event(frame_json(served, *view_, cells, true), &frame->whole);
  if (cells_.size() == cells.size()) append_sse_event(frame_json(served, *view_, cells, false), &frame->changes);
  if (frame->changes.size() >= frame->whole.size()) frame->changes.clear();
  cells_ = std::move(cells);
  frame_ = std::move(frame);
}

std::string LiveFeed::frame_json(const ServedModel& served, const LiveView& view, const std::vector<uint8_t>& cells, bool whole) const {
  std::string text;
  JsonWriter json(&text);
  json.begin_object();
  json.key("ms").integer(std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now().time_since_epoch()).count());
  if (whole) write_model(served, options_, view.scheduler, &json);
  write_state(view.stats, &json);
  if (options_.show_requests) write_requests(view, &json);
  if (whole) {
    json.key("cells").string(cells_base64(cells));
  } else {
    json.key("runs").begin_array();
    for (const int64_t value : changed_runs(cells_, cells)) json.integer(value);
    json.end_array();
  }
  json.end_object();
  return text;
}

}  // namespace headroom
