// Runs a kernel's blocks on the CPU: the threads of a block are fibers of one system thread, taken in turns; they change over
// where a kernel waits for others (barriers, shuffles, the matrix unit). Blocks run one after another.
//
// What it shows that a GPU hides: a barrier that not all threads reach, a warp whose lanes disagree about the next
// instruction, shared memory that is read before it was written (NaN), data of cp.async that was not waited for (it arrives
// as late as is allowed), and, by running threads and blocks in another order, most races: results must not change.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace headroom::cuda_on_cpu {

constexpr int kLanes = 32;

struct Index3 {
  int x = 0, y = 0, z = 0;
};

// Which thread, and which block, comes first. Nothing that a kernel computes may depend on it.
enum class Order { ascending, descending, shuffled };
void set_order(Order threads, Order blocks);

// Bytes of shared memory that a block may have; a launch that asks for more fails as the driver would.
void set_shared_bytes_max(size_t bytes);

// Calls `body` once for every thread of every block. Returns false, having run nothing, when too much shared memory is asked for.
bool run_grid(Index3 grid, int threads, size_t shared_bytes, const std::function<void()>& body);

// ---- For the instructions below, inside a kernel.
int thread_id();
Index3 block_id();
Index3 grid_size();
unsigned char* shared_begin();
size_t shared_bytes();
void block_barrier();

// All 32 lanes of a warp meet at an instruction. Each brings `in` and gets its lane of what `combine(in[32], out[32])` made.
// `what` names the instruction: lanes that meet at different ones are an error.
void warp_meet(const char* what, const void* in, size_t in_bytes, void* out, size_t out_bytes,
               void (*combine)(const void* in, void* out));

// A copy that arrives when this thread waits for the group it is in.
void copy_later(unsigned char* to, const void* from, size_t bytes);
void close_copy_group();
void wait_copy_groups(int pending);

}  // namespace headroom::cuda_on_cpu
