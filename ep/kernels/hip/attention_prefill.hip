// Attention of many rows, by type and the largest head size.
#include "kernels/hip/attention_prefill.h"

using namespace mxort::hip;

#define MXORT_PREFILL(name, type, size, waves, ...)                                   \
  MXORT_KERNEL(64 * waves, __VA_ARGS__) prefill_##name##_##size(AttentionArgs args) { \
    Prefill<PlainHead<type, size>, waves>(args);                                      \
  }

#if defined(__gfx950__) || defined(__gfx942__)
MXORT_PREFILL(float, Type::kFloat, 64, 4, 1, 1)
MXORT_PREFILL(float, Type::kFloat, 96, 4, 1, 1)
MXORT_PREFILL(float, Type::kFloat, 128, 4, 1, 1)
MXORT_PREFILL(float, Type::kFloat, 256, 4, 1, 1)
MXORT_PREFILL(float16, Type::kFloat16, 64, 8, 2, 2)
MXORT_PREFILL(float16, Type::kFloat16, 96, 4, 1, 2)
MXORT_PREFILL(float16, Type::kFloat16, 128, 8, 2, 2)
MXORT_PREFILL(float16, Type::kFloat16, 256, 4, 1, 1)
MXORT_PREFILL(bfloat16, Type::kBFloat16, 64, 8, 2, 2)
MXORT_PREFILL(bfloat16, Type::kBFloat16, 96, 4, 1, 2)
MXORT_PREFILL(bfloat16, Type::kBFloat16, 128, 8, 2, 2)
MXORT_PREFILL(bfloat16, Type::kBFloat16, 256, 4, 1, 1)
#endif
