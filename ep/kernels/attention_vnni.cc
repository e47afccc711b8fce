// Attention with AVX-512 VNNI: products over an MXFP4 cache in one instruction. Compiled with its own flags; no
// standard library here.
#include "kernels/avx512_floats.h"
#include "kernels/vector_functions.h"

namespace mxort {

void AttendKeysVnni(const AttentionTile& tile) { AttendRange<Avx512>(tile); }

}  // namespace mxort
