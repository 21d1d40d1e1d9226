// Runs a parsed template over the variables of a conversation. One Interpreter per rendering, used by one thread; the
// template is only read.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/tokenizer/jinja_ast.h"
#include "engine/tokenizer/jinja_value.h"

namespace headroom::jinja {

// Names and their values. A for loop has a new scope for each item, a macro one for each call; an if has none.
struct Scope {
  Scope(Budget& budget, std::shared_ptr<Scope> enclosing)
      : parent(std::move(enclosing)), charge(&budget, sizeof(Scope)) {}
  const Value* find_here(NameId name) const;
  void set(NameId name, Value value);
  int64_t search_operations() const { return static_cast<int64_t>(variables.size()) / 16; }  // what find_here costs

  const std::shared_ptr<Scope> parent;
  Charge charge;
  std::vector<std::pair<NameId, Value>> variables;
};
using ScopePtr = std::shared_ptr<Scope>;

class Interpreter {
 public:
  // REQUIRES: both outlive the interpreter.
  Interpreter(const Template& parsed, Runtime& runtime);

  void define(std::string_view name, Value value);
  // The rendered text. Throws Error; line() then tells where.
  Text run();
  int line() const { return line_; }

 private:
  enum class Flow { kNormal, kBreak, kContinue };

  // ---- statements ----
  Flow execute(const Body& body, const ScopePtr& scope);
  Flow execute(const Statement& statement, const ScopePtr& scope);
  Flow execute_if(const IfStatement& statement, const ScopePtr& scope);
  Flow execute_for(const ForStatement& statement, const ScopePtr& scope, const Value& iterable, int64_t depth0);
  Flow execute_with(const WithStatement& statement, const ScopePtr& scope);
  void execute_set_block(const SetBlock& statement, const ScopePtr& scope);
  void execute_call_block(const CallBlock& statement, const ScopePtr& scope);
  void print(const Value& value) { append_string(*out_, value); }
  void assign(const Target& target, const Value& value, const ScopePtr& scope);
  // What `body` prints, as a string; in a scope of its own.
  Value capture(const Body& body, const ScopePtr& scope, Flow* flow);
  template <class Print>
  Value capture_print(Print print);

  // ---- expressions ----
  Value evaluate(const Expression& expression, const ScopePtr& scope);
  Value evaluate_name(const Name& node, const ScopePtr& scope);
  Value evaluate_sequence(const SequenceDisplay& node, const ScopePtr& scope);
  Value evaluate_dict(const DictDisplay& node, const ScopePtr& scope);
  Value evaluate_unary(const Unary& node, const ScopePtr& scope);
  Value evaluate_binary(const Binary& node, const ScopePtr& scope);
  Value evaluate_logic(const Logic& node, const ScopePtr& scope);
  Value evaluate_concat(const Concat& node, const ScopePtr& scope);
  Value evaluate_compare(const Compare& node, const ScopePtr& scope);
  Value evaluate_conditional(const Conditional& node, const ScopePtr& scope);
  Value evaluate_attribute(const AttributeOf& node, const ScopePtr& scope);
  Value evaluate_item(const ItemOf& node, const ScopePtr& scope);
  Value evaluate_slice(const SliceOf& node, const ScopePtr& scope);
  Value evaluate_call(const Call& node, const ScopePtr& scope);
  Value evaluate_filter(const FilterCall& node, const ScopePtr& scope);
  Value evaluate_test(const TestCall& node, const ScopePtr& scope);
  Value evaluate_optional(const ExpressionPtr& node, const ScopePtr& scope);
  Arguments evaluate_arguments(const ArgumentList& list, const ScopePtr& scope);
  Value filter_block_text(const ExpressionPtr& filter, Value text, const ScopePtr& scope);

  // ---- calls ----
  Value call(const Value& callee, Arguments arguments);
  Value call_macro(const MacroObject& macro, Arguments arguments);
  void bind_parameters(const MacroObject& macro, Arguments& arguments, const ScopePtr& scope);
  Value call_loop(const LoopObject& loop, const Arguments& arguments);

  ScopePtr new_scope(const ScopePtr& parent) { return std::make_shared<Scope>(budget_, parent); }
  const std::string& spelling(NameId name) const { return template_.names[static_cast<size_t>(name)]; }

  const Template& template_;
  Runtime& runtime_;
  Budget& budget_;
  ScopePtr globals_;
  TextBuilder* out_ = nullptr;  // where statements print
  Value block_text_;            // what BlockText stands for
  int line_ = 1;
};

}  // namespace headroom::jinja
