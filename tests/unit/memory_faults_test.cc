// A scripted session over real sockets in which the k-th allocation of the server fails, for every k: nothing dies, nobody waits for ever,
// whatever is answered is whole, and what the engine cannot survive is a fault that it reports.
#include <dlfcn.h>
#include <execinfo.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <thread>

#include "tests/unit/api_fixture.h"
#include "tests/unit/http_client.h"

namespace {

std::atomic<int64_t> g_allocations{0};
std::atomic<int64_t> g_failing{-1};     // the number of the allocation that fails
std::atomic<int64_t> g_exempt{0};
thread_local bool t_is_client = false;  // the clients of the test are not under test

// The destructor of nlohmann's json takes memory to flatten its tree, and may not fail: no caller can help that.
bool in_json_destructor() {
  void* frames[48];
  const int count = backtrace(frames, 48);
  for (int i = 0; i < count; ++i) {
    Dl_info info{};
    if (dladdr(frames[i], &info) != 0 && info.dli_sname != nullptr && std::strstr(info.dli_sname, "json_value7destroy") != nullptr) return true;
  }
  return false;
}

bool may_allocate() {
  if (t_is_client || g_allocations.fetch_add(1) != g_failing.load()) return true;
  t_is_client = true;  // looking at the stack may take memory
  const bool exempt = in_json_destructor();
  t_is_client = false;
  g_exempt += exempt;
  return exempt;
}

void* allocate(size_t size, size_t alignment) {
  if (!may_allocate()) return nullptr;
  return alignment <= alignof(std::max_align_t) ? std::malloc(size == 0 ? 1 : size) : std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
}
void* allocate_or_throw(size_t size, size_t alignment = alignof(std::max_align_t)) {
  void* memory = allocate(size, alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(size_t size) { return allocate_or_throw(size); }
void* operator new[](size_t size) { return allocate_or_throw(size); }
void* operator new(size_t size, const std::nothrow_t&) noexcept { return allocate(size, alignof(std::max_align_t)); }
void* operator new[](size_t size, const std::nothrow_t&) noexcept { return allocate(size, alignof(std::max_align_t)); }
void* operator new(size_t size, std::align_val_t alignment) { return allocate_or_throw(size, static_cast<size_t>(alignment)); }
void* operator new[](size_t size, std::align_val_t alignment) { return allocate_or_throw(size, static_cast<size_t>(alignment)); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }

namespace headroom {
namespace {

class Served {
 public:
  Served() : server_({.port = 0}, api.routes(), nullptr) {
    server_.bind();
    thread_ = std::thread([this] { server_.serve(); });
  }
  ~Served() {
    server_.stop();
    thread_.join();
  }
  std::string ask(const std::string& request) {
    Client client(server_.port());
    client.send_text(request);
    return client.read_all();
  }
  bool faulted() const { return api.engine->stats().faulted; }
  ApiUnderTest api;

 private:
  HttpServer server_;
  std::thread thread_;
};

const std::vector<std::string>& script() {
  static const std::vector<std::string> requests = {
      get("/livez"),
      post("/v1/completions", R"({"prompt":"abc","max_tokens":4,"logprobs":2,"stop":["zz"]})"),
      post("/v1/completions", R"({"prompt":["abc","d"],"n":2,"max_tokens":3,"stream":true,"stream_options":{"include_usage":true}})"),
      post("/v1/chat/completions", R"({"messages":[{"role":"user","content":"abc"}],"max_tokens":3,"stream":true})"),
      post("/v1/completions", R"({"prompt":"abc","max_tokens":0})"),
      post("/tokenize", R"({"prompt":"abc"})")};
  return requests;
}

// Whole, or a connection that was closed before its answer began.
void expect_sound(const std::string& answer, const std::string& request) {
  EXPECT_THAT(answer, testing::Not(testing::HasSubstr("<still open>"))) << request;
  EXPECT_THAT(answer, testing::Not(testing::HasSubstr("bad_alloc"))) << request;
  EXPECT_TRUE(answer.empty() || answer.starts_with("HTTP/1.1 ")) << answer << "\n" << request;
  if (answer.find("text/event-stream") != std::string::npos && answer.ends_with("\r\n0\r\n\r\n")) {
    EXPECT_THAT(answer, testing::HasSubstr("data: [DONE]")) << request;
  }
}

TEST(MemoryFaults, NoAllocationOfASessionTakesTheServerDown) {
  t_is_client = true;
  spdlog::set_level(spdlog::level::off);
  auto served = std::make_unique<Served>();
  std::vector<std::string> expected;
  for (const std::string& request : script()) served->ask(request);  // what is allocated once
  g_allocations = 0;
  for (const std::string& request : script()) expected.push_back(served->ask(request));
  const int64_t allocations = g_allocations;
  ASSERT_GT(allocations, 500);
  int64_t faults = 0, refused = 0;
  for (int64_t k = 0; k < allocations; ++k) {
    SCOPED_TRACE("allocation " + std::to_string(k));
    g_allocations = 0;
    g_failing = k;
    int64_t differing = 0;
    for (size_t i = 0; i < script().size(); ++i) {
      const std::string answer = served->ask(script()[i]);
      expect_sound(answer, script()[i]);
      differing += answer.substr(0, 12) != expected[i].substr(0, 12);
    }
    g_failing = -1;
    refused += differing;
    if (served->faulted()) {
      ++faults;
      served = std::make_unique<Served>();
    } else {
      EXPECT_LE(differing, 1) << "one allocation costs one request";
      EXPECT_TRUE(served->api.becomes_idle());
    }
    if (HasFailure()) return;
  }
  EXPECT_THAT(served->ask(script()[1]), testing::StartsWith("HTTP/1.1 200"));
  EXPECT_GT(refused, 50);
  EXPECT_GT(faults, 0);
  EXPECT_LT(g_exempt, allocations / 20);
  RecordProperty("allocations", static_cast<int>(allocations));
  RecordProperty("faults", static_cast<int>(faults));
}

}  // namespace
}  // namespace headroom
