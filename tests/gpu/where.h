// What the CUDA tests run on. The same sources are built twice: against the kernels' source on the CPU layer (where_layer.cc), on
// every machine; and, as NAME_device, against the CUDA backend (where_device.cc), which says SKIPPED without a device. The build
// links one of the two; nothing else knows.
#pragma once

namespace headroom {

bool on_device();
// Steps that were replayed so far; a device does not say.
int replayed_steps();
// Launches of the step that was recorded last; a device does not say.
int recorded_launches();
// Whether streams do what they are told only when somebody waits for it; a device does as it likes.
void set_late(bool late);

}  // namespace headroom
