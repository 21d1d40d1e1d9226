#include "engine/tokenizer/jinja_interpreter.h"

#include "engine/tokenizer/jinja_builtins.h"
#include "kernels/check.h"

namespace headroom::jinja {
namespace {

// Ends a loop object even when its body throws: what it refers to may refer to it.
class LoopEnd {
 public:
  explicit LoopEnd(LoopObject& loop) : loop_(loop) {}
  ~LoopEnd() { loop_.end(); }
  LoopEnd(const LoopEnd&) = delete;
  LoopEnd& operator=(const LoopEnd&) = delete;

 private:
  LoopObject& loop_;
};

// Restores a variable of the interpreter at the end of a block, however it ends.
template <class T>
class Restored {
 public:
  Restored(T& variable, T value) : variable_(variable), before_(std::exchange(variable, std::move(value))) {}
  ~Restored() { variable_ = std::move(before_); }
  Restored(const Restored&) = delete;
  Restored& operator=(const Restored&) = delete;

 private:
  T& variable_;
  T before_;
};

}  // namespace

const Value* Scope::find_here(NameId name) const {
  for (const auto& [key, value] : variables) {
    if (key == name) return &value;
  }
  return nullptr;
}

void Scope::set(NameId name, Value value) {
  for (auto& [key, present] : variables) {
    if (key != name) continue;
    present = std::move(value);
    return;
  }
  charge.grow(sizeof(std::pair<NameId, Value>));
  variables.emplace_back(name, std::move(value));
}

Interpreter::Interpreter(const Template& parsed, Runtime& runtime)
    : template_(parsed),
      runtime_(runtime),
      budget_(runtime.budget()),
      globals_(std::make_shared<Scope>(runtime.budget(), nullptr)) {
  for (const std::string_view name : kGlobalNames) define(name, make_global(runtime_, name));
}

void Interpreter::define(std::string_view name, Value value) {
  const auto id = template_.name_ids.find(name);
  if (id != template_.name_ids.end()) globals_->set(id->second, std::move(value));
}

Text Interpreter::run() {
  TextBuilder out(budget_);
  const Restored<TextBuilder*> printing(out_, &out);
  execute(template_.body, new_scope(globals_));
  return out.take();
}

// ---- statements ----

Interpreter::Flow Interpreter::execute(const Body& body, const ScopePtr& scope) {
  const FrameGuard frame(budget_);
  for (const StatementPtr& statement : body) {
    budget_.spend(1);
    line_ = statement->line;
    const Flow flow = execute(*statement, scope);
    if (flow != Flow::kNormal) return flow;
  }
  return Flow::kNormal;
}

Interpreter::Flow Interpreter::execute(const Statement& statement, const ScopePtr& scope) {
  switch (statement.kind) {
    case StatementKind::kText:
      out_->append(static_cast<const TextStatement&>(statement).text, false);
      break;
    case StatementKind::kPrint:
      print(evaluate(*static_cast<const PrintStatement&>(statement).value, scope));
      break;
    case StatementKind::kIf:
      return execute_if(static_cast<const IfStatement&>(statement), scope);
    case StatementKind::kFor: {
      const auto& loop = static_cast<const ForStatement&>(statement);
      return execute_for(loop, scope, evaluate(*loop.iterable, scope), 0);
    }
    case StatementKind::kSet: {
      const auto& set = static_cast<const SetStatement&>(statement);
      assign(set.target, evaluate(*set.value, scope), scope);
      break;
    }
    case StatementKind::kSetBlock:
      execute_set_block(static_cast<const SetBlock&>(statement), scope);
      break;
    case StatementKind::kMacro: {
      const auto& macro = static_cast<const MacroStatement&>(statement);
      scope->set(macro.name, runtime_.macro(macro, scope));
      break;
    }
    case StatementKind::kCallBlock:
      execute_call_block(static_cast<const CallBlock&>(statement), scope);
      break;
    case StatementKind::kFilterBlock: {
      const auto& block = static_cast<const FilterBlock&>(statement);
      Flow flow = Flow::kNormal;
      Value text = capture(block.body, scope, &flow);
      if (flow != Flow::kNormal) return flow;
      print(filter_block_text(block.filter, std::move(text), scope));
      break;
    }
    case StatementKind::kWith:
      return execute_with(static_cast<const WithStatement&>(statement), scope);
    case StatementKind::kScopedBlock:
      return execute(static_cast<const ScopedBlock&>(statement).body, new_scope(scope));
    case StatementKind::kBreak:
      return Flow::kBreak;
    case StatementKind::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNormal;
}

Interpreter::Flow Interpreter::execute_if(const IfStatement& statement, const ScopePtr& scope) {
  for (const auto& [condition, body] : statement.branches) {
    if (is_truthy(evaluate(*condition, scope))) return execute(body, scope);
  }
  return execute(statement.otherwise, scope);
}

Interpreter::Flow Interpreter::execute_for(const ForStatement& statement, const ScopePtr& scope, const Value& iterable,
                                           int64_t depth0) {
  const auto loop = std::make_shared<LoopObject>(&budget_);
  const LoopEnd at_end(*loop);
  loop->source = iterate(runtime_, iterable).share();
  loop->depth0 = depth0;
  if (statement.recursive) {
    loop->statement = &statement;
    loop->scope = scope;
  }
  if (statement.condition) {
    loop->condition = [&](const Value& item) {
      const auto inner = new_scope(scope);
      assign(statement.target, item, inner);
      return is_truthy(evaluate(*statement.condition, inner));
    };
  } else {
    loop->known_length = static_cast<int64_t>(loop->source->items.size());
  }
  bool completed = false;  // Jinja runs the else part unless an item got through without break or continue
  ScopePtr inner;
  while (loop->next()) {
    budget_.spend(1);
    if (inner && inner.use_count() == 1) {
      inner->variables.clear();
    } else {
      inner = new_scope(scope);  // a macro of the previous item holds the old one
    }
    inner->set(kLoopName, Value::object(Kind::kLoop, loop));
    assign(statement.target, loop->current, inner);
    const Flow flow = execute(statement.body, inner);
    if (flow == Flow::kBreak) break;
    completed |= flow == Flow::kNormal;
  }
  if (completed) return Flow::kNormal;
  return execute(statement.otherwise, new_scope(scope));
}

Interpreter::Flow Interpreter::execute_with(const WithStatement& statement, const ScopePtr& scope) {
  const auto inner = new_scope(scope);
  for (const auto& [target, value] : statement.bindings) assign(target, evaluate(*value, scope), inner);
  return execute(statement.body, inner);
}

void Interpreter::execute_set_block(const SetBlock& statement, const ScopePtr& scope) {
  Flow flow = Flow::kNormal;
  Value text = capture(statement.body, scope, &flow);
  if (statement.filter) text = filter_block_text(statement.filter, std::move(text), scope);
  assign(statement.target, text, scope);
}

void Interpreter::execute_call_block(const CallBlock& statement, const ScopePtr& scope) {
  const auto& node = static_cast<const Call&>(*statement.call);
  const Value callee = evaluate(*node.callee, scope);
  Arguments arguments = evaluate_arguments(node.arguments, scope);
  arguments.named.emplace_back("caller", runtime_.macro(statement.caller, scope));
  print(call(callee, std::move(arguments)));
}

void Interpreter::assign(const Target& target, const Value& value, const ScopePtr& scope) {
  budget_.spend(1);
  if (target.is_tuple) {
    const Items items = iterate(runtime_, value);
    if (items.size() != target.parts.size()) {
      throw Error(items.size() < target.parts.size()
                      ? "not enough values to unpack (expected " + std::to_string(target.parts.size()) + ", got " +
                            std::to_string(items.size()) + ")"
                      : "too many values to unpack (expected " + std::to_string(target.parts.size()) + ")");
    }
    for (size_t i = 0; i < target.parts.size(); ++i) assign(target.parts[i], items[i], scope);
    return;
  }
  if (target.attribute.empty()) {
    budget_.spend(scope->search_operations());
    return scope->set(target.name, value);
  }
  const Scope* holder = scope.get();
  const Value* object = nullptr;
  for (; holder && !object; holder = holder->parent.get()) object = holder->find_here(target.name);
  if (!object || !object->is(Kind::kNamespace))
    throw Error("cannot assign an attribute of something that is no namespace");
  if (target.attribute[0] == '_')
    throw Error("a namespace cannot hold '" + target.attribute + "': it begins with an underscore");
  object->as<NamespaceObject>().set(target.attribute, value);
}

template <class Print>
Value Interpreter::capture_print(Print print) {
  TextBuilder text(budget_);
  const Restored<TextBuilder*> printing(out_, &text);
  print();
  return runtime_.string(text);
}

Value Interpreter::capture(const Body& body, const ScopePtr& scope, Flow* flow) {
  return capture_print([&] { *flow = execute(body, new_scope(scope)); });
}

Value Interpreter::filter_block_text(const ExpressionPtr& filter, Value text, const ScopePtr& scope) {
  const Restored<Value> block_text(block_text_, std::move(text));
  return evaluate(*filter, scope);
}

// ---- calls ----

Value Interpreter::call(const Value& callee, Arguments arguments) {
  switch (callee.kind()) {
    case Kind::kFunction: {
      const auto& function = callee.as<FunctionObject>();
      return function.call(runtime_, function.receiver, arguments);
    }
    case Kind::kMacro:
      return call_macro(callee.as<MacroObject>(), std::move(arguments));
    case Kind::kLoop:
      return call_loop(callee.as<LoopObject>(), arguments);
    default:
      break;
  }
  require_defined(callee);
  throw Error("'" + type_name(callee) + "' object is not callable");
}

Value Interpreter::call_macro(const MacroObject& macro, Arguments arguments) {
  const CallGuard depth(budget_);
  const auto scope = new_scope(macro.scope);
  bind_parameters(macro, arguments, scope);
  const int line = line_;
  Value text = capture_print([&] { execute(macro.statement.body, scope); });
  line_ = line;
  return text;
}

void Interpreter::bind_parameters(const MacroObject& macro, Arguments& arguments, const ScopePtr& scope) {
  const MacroStatement& definition = macro.statement;
  const std::string name = "macro '" + definition.spelling + "'";
  std::vector<bool> used(arguments.named.size(), false);
  const auto take_named = [&](std::string_view wanted) -> const Value* {
    for (size_t i = 0; i < arguments.named.size(); ++i) {
      if (used[i] || arguments.named[i].first != wanted) continue;
      used[i] = true;
      return &arguments.named[i].second;
    }
    return nullptr;
  };
  const size_t pairs = definition.parameters.size() * arguments.named.size();
  budget_.spend(static_cast<int64_t>(pairs / 16));
  bool has_caller = false;
  for (size_t i = 0; i < definition.parameters.size(); ++i) {
    const Parameter& parameter = definition.parameters[i];
    has_caller |= parameter.name == kCallerName;
    const Value* given = i < arguments.positional.size() ? &arguments.positional[i] : take_named(parameter.spelling);
    if (given) {
      scope->set(parameter.name, *given);
    } else if (parameter.default_value) {
      scope->set(parameter.name, evaluate(*parameter.default_value, scope));
    } else {
      scope->set(parameter.name, runtime_.undefined("parameter '" + parameter.spelling + "' was not provided"));
    }
  }
  if (definition.uses_caller && !has_caller) {
    const Value* caller = take_named("caller");
    scope->set(kCallerName, caller ? *caller : runtime_.undefined("No caller defined"));
  }
  if (definition.uses_kwargs) {
    const auto rest = runtime_.new_dict();
    for (size_t i = 0; i < arguments.named.size(); ++i) {
      if (!used[i]) rest->set(runtime_.keyword(arguments.named[i].first), arguments.named[i].second);
    }
    scope->set(kKwargsName, runtime_.dict(rest));
  } else {
    for (size_t i = 0; i < used.size(); ++i) {
      if (!used[i]) throw Error(name + " takes no keyword argument '" + arguments.named[i].first + "'");
    }
  }
  const size_t count = definition.parameters.size();
  if (definition.uses_varargs) {
    std::vector<Value> rest;
    for (size_t i = count; i < arguments.positional.size(); ++i) rest.push_back(arguments.positional[i]);
    scope->set(kVarargsName, runtime_.tuple(std::move(rest)));
  } else if (arguments.positional.size() > count) {
    throw Error(name + " takes not more than " + std::to_string(count) + " argument(s)");
  }
}

Value Interpreter::call_loop(const LoopObject& loop, const Arguments& arguments) {
  if (!loop.statement) throw Error("the loop must have the 'recursive' marker to be called recursively");
  if (arguments.positional.size() != 1 || !arguments.named.empty()) throw Error("loop() takes exactly one argument");
  const CallGuard depth(budget_);
  const ForStatement& statement = *loop.statement;
  const ScopePtr scope = loop.scope;
  const int64_t depth0 = loop.depth0 + 1;
  return capture_print([&] { execute_for(statement, scope, arguments.positional[0], depth0); });
}

}  // namespace headroom::jinja
