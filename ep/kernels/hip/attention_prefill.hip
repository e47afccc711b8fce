// Attention of many rows, by type and the largest head size.
#include "kernels/hip/attention_prefill.h"

using namespace mxort::hip;

#define MXORT_PREFILL(name, type, size, ...) \
  MXORT_KERNEL(256, __VA_ARGS__) prefill_##name##_##size(AttentionArgs args) { Prefill<PlainHead<type, size>>(args); }

#if defined(__gfx950__) || defined(__gfx942__)
MXORT_PREFILL(float, Type::kFloat, 64, 2, 2)
MXORT_PREFILL(float, Type::kFloat, 96, 1, 1)
MXORT_PREFILL(float, Type::kFloat, 128, 1, 1)
MXORT_PREFILL(float, Type::kFloat, 256, 1, 1)
MXORT_PREFILL(float16, Type::kFloat16, 64, 2, 2)
MXORT_PREFILL(float16, Type::kFloat16, 96, 2, 2)
MXORT_PREFILL(float16, Type::kFloat16, 128, 2, 2)
MXORT_PREFILL(float16, Type::kFloat16, 256, 1, 1)
MXORT_PREFILL(bfloat16, Type::kBFloat16, 64, 2, 2)
MXORT_PREFILL(bfloat16, Type::kBFloat16, 96, 2, 2)
MXORT_PREFILL(bfloat16, Type::kBFloat16, 128, 2, 2)
MXORT_PREFILL(bfloat16, Type::kBFloat16, 256, 1, 1)
#endif
