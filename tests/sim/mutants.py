#!/usr/bin/env python3
"""Seeded bugs of the control plane, each an edit of its real source: does the simulation catch them?

mutants.py --list             one line per mutant: its name and the source that it edits, separated by a space
mutants.py NAME SOURCE_DIR OUT  writes the edited source to OUT
mutants.py --run BUILD_DIR [SEEDS]  runs each built mutant with SEEDS seeds (5) and prints what caught it and in which
                              step, the latest last; exit status 1 if one was not caught within 100,000 steps

The build compiles each edited source beside the unedited rest and links it with the simulation, so the product has no
seam for tests. An edit whose text is no longer in the source exactly once stops the build: bring it up to date.
"""

import pathlib
import re
import subprocess
import sys

FAIR_QUEUE = "engine/fair_queue.cc"
ALLOCATOR = "engine/kv/page_allocator.cc"
CACHE = "engine/kv/prefix_cache.cc"
SCHEDULER = "engine/scheduler.cc"

MUTANTS = {
    # One request reads another's pages.
    "late_pin": (SCHEDULER, [  # the lookup does not pin: that happens only after new pages were taken
        ("  match_prefix(sequence);\n  const auto matched_pages",
         "  match_prefix(sequence);\n"
         "  for (size_t i = matched_.size(); i-- > 0;) allocator_.release(matched_[i]);\n"
         "  const auto matched_pages"),
        ("  for (int32_t i = dropped_pages; i-- > 0;) allocator_.release(matched_[static_cast<size_t>(i)]);\n", ""),
        ("    for (int32_t i = matched_pages; i-- > dropped_pages;) "
         "allocator_.release(matched_[static_cast<size_t>(i)]);\n", ""),
        ("  add_to_plan(sequence, tokens, take_pages(sequence, tokens));\n  return tokens;\n",
         "  const bool grew = take_pages(sequence, tokens);\n"
         "  for (int32_t i = dropped_pages; i < matched_pages; ++i) {\n"
         "    allocator_.add_reference(matched_[static_cast<size_t>(i)]);\n"
         "  }\n"
         "  add_to_plan(sequence, tokens, grew);\n  return tokens;\n")]),
    "publish_in_plan": (SCHEDULER, [  # pages can be found before they are computed
        ("  step.plan.tokens += tokens;\n",
         "  step.plan.tokens += tokens;\n"
         "  sequence.computed += tokens;\n"
         "  if (prefix_cache_) publish_full_pages(sequence);\n"
         "  sequence.computed -= tokens;\n")]),
    "publish_partial_page": (SCHEDULER, [  # a page is published when its last slot is still to be written
        ("page_tokens <= static_cast<size_t>(sequence.computed)", "page_tokens <= sequence.tokens.size()")]),
    "stale_hash_after_eviction": (CACHE, [  # the evicted page stays in its bucket
        ("  *link = entry.next;\n  entry = Entry{};\n", "  entry.serial = 0;\n")]),
    "evicted_page_not_forgotten": (ALLOCATOR, [  # nobody tells the prefix cache
        ("    listener_->page_evicted(PageId{page});\n", "")]),
    "weak_hash_alone": (CACHE, [  # a hash of 8 bits is believed without comparing
        ("  if (!(entry.hash == hash)) return false;  // most often; the rest makes a hit certain\n"
         "  if (entry.parent_serial != end.parent_serial || !(entry.salt == end.salt)) return false;\n"
         "  return std::ranges::equal(tokens_of(page), tokens);\n",
         "  static_cast<void>(end);\n"
         "  static_cast<void>(tokens);\n"
         "  return (entry.hash.low & 0xff) == (hash.low & 0xff);\n")]),
    "salt_ignored": (CACHE, [
        ("hash.finish({reinterpret_cast<const unsigned char*>(salt.data()), salt.size()})",
         "hash.finish(std::span<const unsigned char>(reinterpret_cast<const unsigned char*>(salt.data()), 0))")]),
    "prefix_not_hashed": (CACHE, [  # a page is found by its own tokens, whatever came before it
        ("  hash.add_word(end.hash.low);\n  hash.add_word(end.hash.high);\n", "  static_cast<void>(end);\n"),
        ("entry.parent_serial != end.parent_serial || ", "")]),
    "fork_writes_in_place": (SCHEDULER, [  # no copy on write
        ("allocator_.references(partial) > 1", "allocator_.references(partial) > 1000"),
        ("allocator_.references(from) > 1)", "allocator_.references(from) > 1000)")]),
    "copy_not_announced": (SCHEDULER, [("      plan.copies.push_back({from, to});\n", "")]),

    # References go wrong.
    "fork_without_reference": (SCHEDULER, [
        ("      if (page != kNoPage) allocator_.add_reference(page);\n", "")]),
    "cancel_leaks_last_page": (SCHEDULER, [
        ("  give_back_all(sequence);\n  request.sequences",
         "  if (request.cancelled && !sequence.pages.empty()) sequence.pages.pop_back();\n"
         "  give_back_all(sequence);\n  request.sequences")]),
    "shared_page_released_twice": (SCHEDULER, [
        ("  allocator_.release(page);\n}",
         "  allocator_.release(page);\n  if (allocator_.references(page) > 1) allocator_.release(page);\n}")]),
    "pinned_page_stays_evictable": (ALLOCATOR, [
        ("    unlink_cached(index_of(page));\n    live_written", "    live_written")]),

    # Tokens go wrong.
    "window_one_position_early": (SCHEDULER, [
        ("std::max(position - options_.window_tokens + 1, 0)", "std::max(position - options_.window_tokens + 2, 0)")]),
    "recompute_skips_a_token": (SCHEDULER, [
        ("  sequence.computed = matched_tokens;\n",
         "  sequence.computed = matched_tokens + (sequence.computed_max > matched_tokens ? 1 : 0);\n")]),
    "whole_prompt_from_cache": (SCHEDULER, [  # nothing is left to compute the logits from
        ("static_cast<int32_t>(sequence.tokens.size()) - 1;", "static_cast<int32_t>(sequence.tokens.size());")]),
    "logits_skipped_by_hit": (SCHEDULER, [  # a request that wants all logits takes a prefix from the cache
        ("  if (request.all_prompt_logits) limit", "  if (request.all_prompt_logits && limit < 0) limit")]),

    # Numbers that are no numbers are found by others.
    "invalid_stays_findable": (SCHEDULER, [("    if (sampled.invalid) forget_pages(sequence);\n", "")]),
    "only_held_pages_of_invalid_forgotten": (SCHEDULER, [  # and not what a window has dropped
        ("    prefix_cache_->forget(page);\n",
         "    if (std::ranges::find(sequence.pages, page) != sequence.pages.end()) prefix_cache_->forget(page);\n")]),
    "forgotten_page_stays_cacheable": (CACHE, [("  allocator_.clear_cacheable(page);\n", "")]),

    # A step fails.
    "abandoned_step_keeps_pages": (SCHEDULER, [("  while (!running_.empty()) preempt_youngest();\n", "")]),
    "abandoned_step_counts": (SCHEDULER, [
        ("  if (const Step* step = std::exchange(under_way_, nullptr)) {\n",
         "  for (size_t i = 0; i < latest().planned.size(); ++i) {\n"
         "    Sequence& sequence = *latest().planned[i].sequence;\n"
         "    advance(sequence, plan.sequences[i]);\n"
         "    if (prefix_cache_) publish_full_pages(sequence);\n"
         "  }\n"
         "  if (const Step* step = std::exchange(under_way_, nullptr)) {\n")]),

    # A step is planned behind another one.
    "published_before_known": (SCHEDULER, [  # a page is found before its step is known to have come right
        ("  sequence.computed = end;\n", "  sequence.computed = end;\n  if (prefix_cache_) publish_full_pages(sequence);\n")]),
    "preempted_before_known": (SCHEDULER, [("  return lacking > allocator_.available();\n", "  return false && lacking > 0;\n")]),
    "window_dropped_before_published": (SCHEDULER, [
        ("  if (prefix_cache_) first = std::min(first, sequence.published_pages);\n", "")]),
    "window_not_waited_for": (SCHEDULER, [
        ("    if (sequence->dropped_pages < first_page_in_window(sequence->computed)) return true;\n", "")]),
    "last_token_planned_again": (SCHEDULER, [
        ("static_cast<int32_t>(sequence.tokens.size()) + 1 < sequence.tokens_max", "static_cast<int32_t>(sequence.tokens.size()) < sequence.tokens_max")]),
    "token_of_another": (SCHEDULER, [  # the first one, for all
        ("unknown_token(scheduled.sampled_begin)", "unknown_token(0)")]),
    "unknown_token_kept": (SCHEDULER, [  # after a step that failed while it was under way
        ("      if (is_unknown(tokens.back())) tokens.pop_back();\n", "      static_cast<void>(tokens);\n")]),
    "ended_sequence_advances": (SCHEDULER, [
        ("    if (under_way_->planned[i].has_ended(scheduled)) continue;\n", "")]),
    "ended_sequence_gets_a_token": (SCHEDULER, [
        ("    if (step.planned[i].has_ended(scheduled)) continue;\n", "")]),

    # Somebody waits for ever, or takes more than is his.
    "chunks_ignore_their_limit": (SCHEDULER, [("std::min(chunk_budget, chunk_tokens_max_)", "std::min(chunk_budget, chunk_budget)")]),
    "step_budget_ignores_decode": (SCHEDULER, [("single_budget - singles, 0", "single_budget - 0 * singles, 0")]),
    "slots_of_forks_not_kept": (SCHEDULER, [  # more sequences run than may
        ("running_slots_ + sequence.slots > options_.running_sequences_max",
         "running_slots_ + 1 > options_.running_sequences_max")]),
    "oldest_preempted": (SCHEDULER, [
        ("    if (index + 1 == running_.size()) return false;\n    preempt_youngest();\n",
         "    if (index + 1 == running_.size()) return false;\n"
         "    std::rotate(running_.begin(), running_.begin() + 1, running_.end());\n"
         "    preempt_youngest();\n"
         "    return false;\n")]),
    "preempted_goes_last": (SCHEDULER, [("preempted_.push_front(sequence);", "preempted_.push_back(sequence);")]),
    "blocked_head_is_overtaken": (SCHEDULER, [
        ("      const int32_t tokens = next == nullptr ? 0 : try_admit(*next, chunk_budget);\n",
         "      int32_t tokens = next == nullptr ? 0 : try_admit(*next, chunk_budget);\n"
         "      if (tokens == 0 && next != nullptr && next->waiting_next != nullptr) {\n"
         "        tokens = try_admit(*next->waiting_next, chunk_budget);\n"
         "      }\n")]),
    "queue_place_leaks_on_cancel": (SCHEDULER, [
        ("    if (!request.started) leave_queue(request);\n", "")]),

    # One tenant takes what is another's.
    "tenants_take_no_turns": (FAIR_QUEUE, [  # first come, first served among all
        ("  if (a.service != b.service) return a.service < b.service;\n", "")]),
    "weights_ignored": (FAIR_QUEUE, [("kTokenPrice / weights[i]", "kTokenPrice")]),
    "pause_saves_up_a_claim": (FAIR_QUEUE, [("    tenant.service = std::max(tenant.service, floor_);\n", "")]),
    "answers_are_free": (SCHEDULER, [("  queue_.charge(sequence.tenant, 1);\n", "")]),
    "pages_beyond_the_share": (SCHEDULER, [
        ("use.pages_promised + sequence.request->pages_max <=", "use.pages_promised <=")]),
    "ended_requests_keep_their_share": (SCHEDULER, [("    use.pages_promised -= request.pages_max;\n", "")]),
}


def run(build: pathlib.Path, seeds: int) -> int:
    worst = []
    for name in MUTANTS:
        for seed in range(1, seeds + 1):
            done = subprocess.run([build / "tests/sim" / f"mutant_{name}", "--steps", "100000", "--seed", str(seed), "--expect-violation"],
                                  capture_output=True, text=True)
            caught = re.search(r"violation at step (\d+) \(episode seed \d+\): (.*)", done.stderr)
            step = int(caught.group(1)) if done.returncode == 0 and caught else None
            how = caught.group(2) if caught else "NOT CAUGHT"
            if how.startswith("a CHECK"):
                how = "CHECK of the scheduler: " + done.stderr.split("\n")[0].split(": ", 1)[-1]
            worst.append((step is None, step or 0, name, seed, how))
    latest = {}
    for entry in sorted(worst):
        latest[entry[2]] = entry
    for _, step, name, seed, how in sorted(latest.values()):
        print(f"{step:>7}  {name} (seed {seed}): {how}")
    lost = sum(entry[0] for entry in worst)
    print(f"{len(MUTANTS)} mutants, {seeds} seeds each: {len(worst) - lost} of {len(worst)} caught, "
          f"the latest in step {max(entry[1] for entry in worst)}")
    return 1 if lost else 0


def main() -> int:
    if sys.argv[1:2] == ["--run"]:
        return run(pathlib.Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 5)
    if sys.argv[1:] == ["--list"]:
        print("\n".join(f"{name} {source}" for name, (source, _) in MUTANTS.items()))
        return 0
    name, source_dir, out = sys.argv[1:]
    source, edits = MUTANTS[name]
    text = (pathlib.Path(source_dir) / source).read_text()
    for before, after in edits:
        if text.count(before) != 1:
            print(f"mutant {name}: its text occurs {text.count(before)} times in {source}:\n{before}", file=sys.stderr)
            return 1
        text = text.replace(before, after)
    pathlib.Path(out).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
