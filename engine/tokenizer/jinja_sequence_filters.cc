// The filters over lists and objects.
#include <algorithm>
#include <iterator>
#include <map>

#include "engine/tokenizer/jinja_builtins.h"
#include "engine/tokenizer/jinja_operators.h"
#include "engine/tokenizer/utf8.h"

namespace headroom::jinja {
namespace {

using Values = std::vector<Value>;

// Sorting and grouping ignore case unless told otherwise.
Value fold_case(Runtime& runtime, const Value& value, bool case_sensitive) {
  return case_sensitive || !value.is_string() ? value : change_case(runtime, value.text(), Case::kLower);
}

Value filter_list(Runtime& runtime, const Value& self, const Arguments&) {
  const Items items = iterate(runtime, self);
  return runtime.list(items.list());
}

Value filter_items(Runtime& runtime, const Value& self, const Arguments&) {
  if (self.is_undefined()) return runtime.generator({});
  if (!self.is(Kind::kDict)) throw Error("can only get item pairs from a mapping");
  Values pairs;
  for (const auto& [key, value] : self.as<DictObject>().entries()) pairs.push_back(runtime.tuple({key, value}));
  return runtime.generator(std::move(pairs));
}

Value filter_first(Runtime& runtime, const Value& self, const Arguments&) {
  if (self.is(Kind::kSequence) && self.as<SequenceObject>().kind == SequenceKind::kGenerator) {
    auto& generator = self.as<SequenceObject>();  // only the first item is consumed
    if (generator.taken < generator.items.size()) return generator.items[generator.taken++];
  }
  if (self.is_string() && !self.text().bytes.empty()) return get_item(runtime, self, Value::integer(0));
  const Items sequence = iterate(runtime, self);
  return sequence.empty() ? runtime.undefined("No first item, sequence was empty.") : sequence[0];
}

Value filter_last(Runtime& runtime, const Value& self, const Arguments&) {
  if (self.is(Kind::kSequence) && self.as<SequenceObject>().kind == SequenceKind::kGenerator) {
    throw Error("'generator' object is not reversible");
  }
  if (self.is_string() && !self.text().bytes.empty()) return get_item(runtime, self, Value::integer(-1));
  const Items sequence = iterate(runtime, self);
  return sequence.empty() ? runtime.undefined("No last item, sequence was empty.") : sequence[sequence.size() - 1];
}

Value filter_join(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters("join", arguments, {"d", "attribute"});
  const Items sequence = iterate(runtime, self);
  const Value separator = parameters.has(0) ? to_string(runtime, parameters[0]) : runtime.string("", false);
  if (!parameters.has(1) || parameters[1].is_none()) return join_values(runtime, separator.text(), sequence.list());
  Values items;
  for (const Value& item : sequence) items.push_back(follow_path(runtime, item, parameters[1]));
  return join_values(runtime, separator.text(), items);
}

Value filter_reverse(Runtime& runtime, const Value& self, const Arguments&) {
  if (self.is_string()) return get_slice(runtime, self, Value::none(), Value::none(), Value::integer(-1));
  const Items items = iterate(runtime, self);
  return runtime.generator(Values(std::make_reverse_iterator(items.end()), std::make_reverse_iterator(items.begin())));
}

// Applies a filter, or follows an attribute, of each item.
Value filter_map(Runtime& runtime, const Value& self, const Arguments& arguments) {
  Values results;
  if (!is_truthy(self)) return runtime.generator({});
  if (arguments.positional.empty()) {
    const Parameters parameters("map", arguments, {"attribute", "default"}, 1);
    for (const Value& item : iterate(runtime, self)) {
      Value value = follow_path(runtime, item, parameters[0]);
      results.push_back(value.is_undefined() && parameters.has(1) ? parameters[1] : std::move(value));
    }
    return runtime.generator(std::move(results));
  }
  const Value& name = arguments.positional[0];
  const Builtin filter = name.is_string() ? find_filter(name.text().bytes) : nullptr;
  if (!filter) throw Error("map needs the name of a filter");
  Arguments rest = arguments;
  rest.positional.erase(rest.positional.begin());
  const FrameGuard frame(runtime.budget());  // map('map', 'map', …)
  for (const Value& item : iterate(runtime, self)) results.push_back(filter(runtime, item, rest));
  return runtime.generator(std::move(results));
}

// select, reject, selectattr, rejectattr: keeps the items that a test accepts, or refuses.
template <bool kKeeps, bool kAttribute>
Value filter_select(Runtime& runtime, const Value& self, const Arguments& arguments) {
  if (!is_truthy(self)) return runtime.generator({});
  constexpr size_t kTestAt = kAttribute ? 1 : 0;
  if (arguments.positional.size() < kTestAt) throw Error("the name of an attribute is missing");
  const Value path = kAttribute ? arguments.positional[0] : Value::none();
  Builtin test = nullptr;
  Arguments rest;
  if (arguments.positional.size() > kTestAt) {
    const Value& name = arguments.positional[kTestAt];
    test = name.is_string() ? find_test(name.text().bytes) : nullptr;
    if (!test) throw Error("there is no test of the given name");
    rest.positional.assign(arguments.positional.begin() + kTestAt + 1, arguments.positional.end());
    rest.named = arguments.named;
  }
  Values kept;
  for (const Value& item : iterate(runtime, self)) {
    runtime.budget().spend(1);
    const Value value = follow_path(runtime, item, path);
    if (is_truthy(test ? test(runtime, value, rest) : value) == kKeeps) kept.push_back(item);
  }
  return runtime.generator(std::move(kept));
}

Values keys_of(Runtime& runtime, const Values& items, const Value& path, bool case_sensitive) {
  Values keys;
  for (const Value& item : items) keys.push_back(fold_case(runtime, follow_path(runtime, item, path), case_sensitive));
  return keys;
}

// sort(attribute="a,b") orders by a, then by b.
Values sort_keys_of(Runtime& runtime, const Values& items, const Value& path, bool case_sensitive) {
  if (!path.is_string() || path.text().bytes.find(',') == std::string::npos)
    return keys_of(runtime, items, path, case_sensitive);
  Values names;
  const std::string& bytes = path.text().bytes;
  for (size_t begin = 0; begin <= bytes.size();) {
    const size_t end = std::min(bytes.find(',', begin), bytes.size());
    names.push_back(runtime.string(std::string_view(bytes).substr(begin, end - begin), false));
    begin = end + 1;
  }
  Values keys;
  for (const Value& item : items) {
    Values parts;
    for (const Value& name : names)
      parts.push_back(fold_case(runtime, follow_path(runtime, item, name), case_sensitive));
    keys.push_back(runtime.tuple(std::move(parts)));
  }
  return keys;
}

Value filter_sort(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters("sort", arguments, {"reverse", "case_sensitive", "attribute"});
  const Items sequence = iterate(runtime, self);
  const Values keys = sort_keys_of(runtime, sequence.list(), parameters[2], parameters.boolean(1, false));
  return runtime.list(sort_values(runtime, sequence.list(), keys, parameters.boolean(0, false)));
}

Value filter_dictsort(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters("dictsort", arguments, {"case_sensitive", "by", "reverse"});
  if (!self.is(Kind::kDict)) throw Error("dictsort needs a mapping, not " + type_name(self));
  const std::string by = parameters.has(1) ? parameters.text(1).bytes : "key";
  if (by != "key" && by != "value") throw Error("dictsort: by must be 'key' or 'value'");
  Values pairs, keys;
  for (const auto& [key, value] : self.as<DictObject>().entries()) {
    pairs.push_back(runtime.tuple({key, value}));
    keys.push_back(fold_case(runtime, by == "key" ? key : value, parameters.boolean(0, false)));
  }
  return runtime.list(sort_values(runtime, pairs, keys, parameters.boolean(2, false)));
}

Value filter_unique(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters("unique", arguments, {"case_sensitive", "attribute"});
  const Items sequence = iterate(runtime, self);
  const Values keys = keys_of(runtime, sequence.list(), parameters[1], parameters.boolean(0, false));
  const auto seen = runtime.new_dict();
  Values kept;
  for (size_t i = 0; i < keys.size(); ++i) {
    if (!is_hashable(keys[i])) throw Error("unhashable type: '" + type_name(keys[i]) + "'");
    if (seen->find(keys[i])) continue;
    seen->set(keys[i], Value::none());
    kept.push_back(sequence[i]);
  }
  return runtime.generator(std::move(kept));
}

template <bool kMax>
Value filter_extreme(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters(kMax ? "max" : "min", arguments, {"case_sensitive", "attribute"});
  const Items sequence = iterate(runtime, self);
  if (sequence.empty()) return runtime.undefined("No aggregated item, sequence was empty.");
  const Values keys = keys_of(runtime, sequence.list(), parameters[1], parameters.boolean(0, false));
  size_t best = 0;
  for (size_t i = 1; i < keys.size(); ++i) {
    if (kMax ? less(runtime.budget(), keys[best], keys[i]) : less(runtime.budget(), keys[i], keys[best])) best = i;
  }
  return sequence[best];
}

Value filter_sum(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters("sum", arguments, {"attribute", "start"});
  Value total = parameters.has(1) ? parameters[1] : Value::integer(0);
  if (total.is_string()) throw Error("sum() can't sum strings");
  for (const Value& item : iterate(runtime, self)) {
    total = apply_binary(runtime, BinaryOperator::kAdd, total, follow_path(runtime, item, parameters[0]));
  }
  return total;
}

Value filter_groupby(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters("groupby", arguments, {"attribute", "default", "case_sensitive"}, 1);
  const Items sequence = iterate(runtime, self);
  const auto key_of = [&](const Value& item) {
    Value key = follow_path(runtime, item, parameters[0]);
    return key.is_undefined() && parameters.has(1) ? parameters[1] : key;
  };
  Values keys;
  for (const Value& item : sequence) keys.push_back(fold_case(runtime, key_of(item), parameters.boolean(2, false)));
  const Values sorted = sort_values(runtime, sequence.list(), keys, false);
  Values groups;
  for (size_t begin = 0; begin < sorted.size();) {
    const Value key = key_of(sorted[begin]);
    const Value folded = fold_case(runtime, key, parameters.boolean(2, false));
    size_t end = begin;
    Values members;
    while (end < sorted.size() &&
           equals(runtime.budget(), folded, fold_case(runtime, key_of(sorted[end]), parameters.boolean(2, false)))) {
      members.push_back(sorted[end++]);
    }
    if (members.empty()) members.push_back(sorted[end++]);  // a key that differs from itself
    groups.push_back(runtime.tuple({key, runtime.list(std::move(members))}));
    begin = end;
  }
  return runtime.list(std::move(groups));
}

Value filter_batch(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters("batch", arguments, {"linecount", "fill_with"}, 1);
  const int64_t size = parameters.integer(0, 0);
  if (size < 1) throw Error("batch: linecount must be at least 1");
  Values batches, batch;
  const Items sequence = iterate(runtime, self);
  for (const Value& item : sequence) {
    if (static_cast<int64_t>(batch.size()) == size) batches.push_back(runtime.list(std::exchange(batch, {})));
    batch.push_back(item);
  }
  if (!batch.empty()) {
    const bool fills = parameters.has(1) && !parameters[1].is_none();
    Charge growing(&runtime.budget(), 0);
    while (fills && static_cast<int64_t>(batch.size()) < size) {
      runtime.budget().spend(1);
      growing.grow(sizeof(Value));
      batch.push_back(parameters[1]);
    }
    batches.push_back(runtime.list(std::move(batch)));
  }
  return runtime.generator(std::move(batches));
}

Value filter_slice(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Parameters parameters("slice", arguments, {"slices", "fill_with"}, 1);
  const int64_t slices = parameters.integer(0, 0);
  if (slices < 1) throw Error("slice: slices must be at least 1");
  const Items sequence = iterate(runtime, self);
  const auto count = static_cast<int64_t>(sequence.size());
  Values columns;
  int64_t begin = 0;
  for (int64_t i = 0; i < slices; ++i) {
    runtime.budget().spend(1);
    const int64_t end = begin + count / slices + (i < count % slices ? 1 : 0);
    Values column(sequence.begin() + begin, sequence.begin() + end);
    if (parameters.has(1) && !parameters[1].is_none() && i >= count % slices) column.push_back(parameters[1]);
    columns.push_back(runtime.list(std::move(column)));
    begin = end;
  }
  return runtime.generator(std::move(columns));
}

}  // namespace

Builtin find_sequence_filter(std::string_view name) {
  static const std::map<std::string_view, Builtin> kFilters = {
      {"batch", filter_batch},
      {"dictsort", filter_dictsort},
      {"first", filter_first},
      {"groupby", filter_groupby},
      {"items", filter_items},
      {"join", filter_join},
      {"last", filter_last},
      {"list", filter_list},
      {"map", filter_map},
      {"max", filter_extreme<true>},
      {"min", filter_extreme<false>},
      {"reject", filter_select<false, false>},
      {"rejectattr", filter_select<false, true>},
      {"reverse", filter_reverse},
      {"select", filter_select<true, false>},
      {"selectattr", filter_select<true, true>},
      {"slice", filter_slice},
      {"sort", filter_sort},
      {"sum", filter_sum},
      {"unique", filter_unique},
  };
  const auto found = kFilters.find(name);
  return found == kFilters.end() ? nullptr : found->second;
}

}  // namespace headroom::jinja
