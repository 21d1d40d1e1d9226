// Expected values: the table of the GQA analysis in the design, and arithmetic by hand. What refuses must name the
// nearest choice.
#include "server/capacity_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "engine/scheduler.h"
#include "server/command_plan.h"
#include "server/model_shapes.h"
#include "tests/unit/api_fixture.h"
#include "tests/unit/checkpoint_writer.h"

namespace headroom {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int64_t kGiB = int64_t{1} << 30;

CapacityQuestion question(const std::string& shape, int64_t context, int64_t pool_bytes) {
  CapacityQuestion asked{
      .model = shape, .config = load_model_shape(shape), .kv_dtype = DType::kF16, .context_tokens = context};
  asked.budgets = {{.memory_bytes = 0, .pool_bytes_max = pool_bytes}};
  return asked;
}

json answer(const CapacityQuestion& asked) {
  std::string out;
  append_capacity_json(answer_capacity(asked), &out);
  return json::parse(out);
}

std::string plan_error(const std::vector<std::string>& arguments) {
  return error_of([&] { run_plan(arguments); });
}

TEST(CapacityPlan, Llama2Of70BAt4K) {
  const json plan = answer(question("llama-2-70b", 4096, 80 * kGiB));
  EXPECT_EQ(plan["planned"]["request_bytes"], kGiB + kGiB / 4);
  EXPECT_EQ(plan["mha"]["request_bytes"], 10 * kGiB);
  EXPECT_EQ(plan["planned"]["budgets"][0]["concurrency_max"], 64);
  EXPECT_EQ(plan["mha"]["budgets"][0]["concurrency_max"], 8);
}

TEST(CapacityPlan, Mistral7BAt8K) {
  const json plan = answer(question("mistral-7b-v0.3", 8192, 80 * kGiB));
  EXPECT_EQ(plan["planned"]["request_bytes"], kGiB);
  EXPECT_EQ(plan["mha"]["request_bytes"], 4 * kGiB);
}

TEST(CapacityPlan, EightyGiBHold) {
  const json plan = answer(question("llama-3.1-8b", 131'072, 80 * kGiB));
  EXPECT_EQ(plan["planned"]["budgets"][0]["tokens"], 655'360);
  EXPECT_EQ(plan["mha"]["budgets"][0]["tokens"], 163'840);
  EXPECT_EQ(plan["mqa"]["budgets"][0]["tokens"], 5'242'880);
  EXPECT_EQ(plan["planned"]["budgets"][0]["concurrency_max"], 5);
  EXPECT_EQ(plan["planned"]["token_bytes"], 131'072);
}

TEST(CapacityPlan, TheHeatmapHasEveryDivisorAndTheContextThatWasAskedFor) {
  CapacityQuestion asked = question("qwen2.5-7b", 3000, kGiB);
  asked.concurrency = 4;
  const json heat = answer(asked)["heatmap"];
  EXPECT_THAT(heat["kv_heads"], ElementsAre(28, 14, 7, 4, 2, 1));
  EXPECT_THAT(heat["context_tokens"], ElementsAre(1024, 2048, 3000, 4096, 8192, 16384, 32768));
  // 28 layers, head_dim 128, 2 bytes: 14,336 bytes for each KV head and token. 3,000 tokens take 188 pages of 16.
  EXPECT_EQ(heat["bytes"][0][0], 4 * 1024 * 28 * 14'336);
  EXPECT_EQ(heat["bytes"][3][2], 4 * 188 * 16 * 4 * 14'336);
  const Heatmap map = capacity_heatmap(answer_capacity(asked));
  EXPECT_EQ(map.rows.size() * map.columns.size(), map.values.size());
  EXPECT_EQ(map.lines.at(0).value, static_cast<double>(kGiB));
  EXPECT_THAT(capacity_table(answer_capacity(asked)), HasSubstr("4 requests of 3,000 tokens"));
}

TEST(CapacityPlan, FitsMeansThatAllRequestsFit) {
  CapacityQuestion asked = question("llama-3-8b", 8192, 16 * kGiB);
  asked.concurrency = 16;
  EXPECT_EQ(answer(asked)["planned"]["budgets"][0]["fits"], true);
  asked.concurrency = 17;
  EXPECT_EQ(answer(asked)["planned"]["budgets"][0]["fits"], false);
}

// A scheduler that admits a request reserves by the same arithmetic.
TEST(CapacityPlan, WindowsCountAsTheSchedulerDoes) {
  for (const int32_t window : {0, 1, 15, 16, 17, 100, 4096}) {
    for (const int32_t step : {1, 16, 100, 512}) {
      const KvShape shape{.layers = 3,
                          .kv_heads = 1,
                          .query_heads = 1,
                          .head_dim = 8,
                          .window_layers = window > 0 ? 3 : 0,
                          .window_tokens = window,
                          .step_tokens = step};
      const Scheduler scheduler({.pages_total = 10'000,
                                 .page_tokens = shape.page_tokens,
                                 .step_tokens_max = step,
                                 .context_tokens_max = 100'000,
                                 .window_tokens = window});
      for (const int32_t tokens : {1, 16, 17, 600, 5000, 50'000}) {
        EXPECT_EQ(shape.request_bytes(tokens), scheduler.can_ever_run(tokens, 1, 1).pages_needed * shape.page_bytes())
            << window << " " << step << " " << tokens;
      }
    }
  }
}

TEST(CapacityPlan, WhatCannotBeSaysWhatCould) {
  EXPECT_THAT(plan_error({"lama-3-8b"}), HasSubstr("did you mean llama-3-8b?"));
  EXPECT_THAT(plan_error({"unheard-of"}), HasSubstr("shapes: "));
  EXPECT_THAT(plan_error({}), HasSubstr("required"));
  EXPECT_THAT(plan_error({"llama-3-8b", "--kv-heads", "3"}),
              HasSubstr("does not divide the 32 query heads; nearest: 2 or 4"));
  EXPECT_THAT(plan_error({"llama-3-8b", "--kv-heads", "33"}), HasSubstr("from 1 to 32"));
  EXPECT_THAT(plan_error({"llama-3-8b", "--kv-heads", "0"}), HasSubstr("from 1 to 32"));
  EXPECT_THAT(plan_error({"llama-3-8b", "--context", "8193"}), HasSubstr("from 1 to 8192, the context of llama-3-8b"));
  EXPECT_THAT(plan_error({"llama-3-8b", "--concurrency", "0"}), HasSubstr("from 1 to 65536"));
  EXPECT_THAT(plan_error({"llama-3-8b", "--kv", "int3"}), HasSubstr("fp32, bf16, fp16"));
  EXPECT_THAT(plan_error({"llama-3-8b", "--weights", "int8"}), HasSubstr("--weights"));
  EXPECT_THAT(plan_error({"llama-3-8b", "--kv-memory", "0"}), HasSubstr("bytes above 0"));
  EXPECT_THAT(plan_error({"llama-3-8b", "--memory", "50%"}), HasSubstr("bytes above 0"));
  EXPECT_THAT(plan_error({"llama-3-8b", "--memory", "14GiB"}),
              HasSubstr("does not hold the weights, which take 14.96 GiB"));
  EXPECT_THAT(plan_error({"llama-3-8b", "--memroy", "14GiB"}), HasSubstr("--memroy"));
}

TEST(CapacityPlan, EveryPublishedShapeCanBePlanned) {
  const std::vector<std::string> names = shape_names();
  EXPECT_GE(names.size(), 42u);
  for (const std::string& name : names) {
    const ModelConfig config = load_model_shape(name);
    const json plan = answer(question(name, config.context_tokens, 80 * kGiB));
    EXPECT_EQ(plan["mqa"]["token_bytes"].get<int64_t>() * config.query_heads, plan["mha"]["token_bytes"].get<int64_t>())
        << name;
  }
}

// Over HTTP: 64 pages of 4,096 bytes, 2 layers, 2 of 8 heads of 16, bf16.
TEST(CapacityRoute, AnswersForTheRunningModel) {
  ApiUnderTest api;
  const json plain = api.get("/v1/capacity").json();
  EXPECT_EQ(plain["model"], "demo");
  EXPECT_EQ(plain["context_tokens"], 512);
  EXPECT_EQ(plain["planned"]["token_bytes"], 256);
  EXPECT_EQ(plain["planned"]["budgets"][0]["pool_bytes"], 64 * kApiPageBytes);
  EXPECT_EQ(plain["planned"]["budgets"][0]["memory_bytes"], nullptr);
  EXPECT_EQ(plain["planned"]["budgets"][0]["concurrency_max"], 2);
  const json asked =
      api.call("GET", "/v1/capacity", {.query = "context=100&concurrency=3&kv_dtype=fp32&kv_heads=4"}).json();
  EXPECT_EQ(asked["planned"]["kv_heads"], 4);
  EXPECT_EQ(asked["planned"]["token_bytes"], 1024);
  EXPECT_EQ(asked["planned"]["request_bytes"], 112 * 1024);
  EXPECT_EQ(asked["planned"]["needed_bytes"], 3 * 112 * 1024);
  EXPECT_EQ(asked["planned"]["budgets"][0]["fits"], false);
}

TEST(CapacityRoute, ABadQueryIs400WithWhatWouldDo) {
  ApiUnderTest api;
  const auto refused = [&](const std::string& query) {
    const Reply reply = api.call("GET", "/v1/capacity", {.query = query});
    EXPECT_EQ(reply.status, 400) << query;
    return reply.json()["error"]["message"].get<std::string>();
  };
  EXPECT_EQ(refused("context=513"), "context must be a whole number from 1 to 512, the context of demo");
  EXPECT_THAT(refused("context="), HasSubstr("from 1 to 512"));
  EXPECT_THAT(refused("context=99999999999999999999"), HasSubstr("from 1 to 512"));
  EXPECT_THAT(refused("context=10x"), HasSubstr("from 1 to 512"));
  EXPECT_THAT(refused("concurrency=-1"), HasSubstr("from 1 to 65536"));
  EXPECT_EQ(refused("kv_heads=3"), "kv_heads does not divide the 8 query heads; nearest: 2 or 4");
  EXPECT_THAT(refused("kv_dtype=fp8"), HasSubstr("fp32, bf16, fp16"));
  EXPECT_EQ(refused("contxt=8"), "contxt is not known; did you mean context?");
  EXPECT_THAT(refused("%00=&"), HasSubstr("use context, concurrency, kv_dtype or kv_heads"));
  EXPECT_EQ(refused("context=8&context=9"), "context is given twice");
  EXPECT_EQ(api.call("GET", "/v1/capacity", {.query = "kv_heads=3"}).json()["error"]["param"], "kv_heads");
}

TEST(CapacityRoute, WaitsForTheModel) {
  ApiUnderTest api;
  api.served = nullptr;
  EXPECT_EQ(api.get("/v1/capacity").status, 503);
}

}  // namespace
}  // namespace headroom
