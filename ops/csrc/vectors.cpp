// The operator mask2former::vector_lanes.
#include <torch/csrc/stable/library.h>

#include <cstdint>

#include "cpu/vectors.h"

namespace {

// From now on, operators on the CPU use vectors of at most `most` floats, if they have a choice. Returns
// how many they use.
int64_t vector_lanes(int64_t most) {
  msda::most_lanes = most;
  return msda::lanes();
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mask2former, m) { m.def("vector_lanes(int most) -> int"); }

STABLE_TORCH_LIBRARY_IMPL(mask2former, CompositeExplicitAutograd, m) {
  m.impl("vector_lanes", TORCH_BOX(&vector_lanes));
}
