// What this machine can do, measured now: the two limits that kernel and engine benchmarks are quoted against.
//
// Threads: each probe starts `threads` threads of its own and takes about a third of a second; nothing else should run
// meanwhile.
#pragma once

namespace headroom {

// Bytes per second that `threads` threads read from main memory, each its own part of a buffer far larger than the
// caches; the best of several passes.
double measured_read_bytes_per_second(int threads);

// fp32 operations per second (a fused multiply-add is two) of independent chains in registers, on the instructions that
// the kernels were dispatched to.
double measured_fma_flops_per_second(int threads);

}  // namespace headroom
