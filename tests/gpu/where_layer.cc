#include "tests/cuda_on_cpu/include/cuda_runtime_api.h"
#include "tests/gpu/where.h"

namespace headroom {

bool on_device() { return false; }
int replayed_steps() { return cuda_on_cpu::graph_launches(); }
int recorded_launches() { return cuda_on_cpu::recorded_launches(); }
void set_late(bool late) { cuda_on_cpu::set_late(late); }

}  // namespace headroom
