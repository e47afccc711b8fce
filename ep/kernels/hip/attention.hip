// Attention of a few rows over many keys, by type and the largest head size, and the sum of its splits.
#include "kernels/hip/attention_decode.h"

using namespace mxort::hip;

#define MXORT_ATTENTION(name, type, size, ...) \
  MXORT_KERNEL(256, __VA_ARGS__) attention_##name##_##size(AttentionArgs args) { Decode<PlainHead<type, size>>(args); }

#if defined(__gfx950__) || defined(__gfx942__)
MXORT_ATTENTION(float, Type::kFloat, 64, 1, 2)
MXORT_ATTENTION(float, Type::kFloat, 96, 1, 2)
MXORT_ATTENTION(float, Type::kFloat, 128, 1, 2)
MXORT_ATTENTION(float, Type::kFloat, 256, 1, 1)
MXORT_ATTENTION(float16, Type::kFloat16, 64, 2, 4)
MXORT_ATTENTION(float16, Type::kFloat16, 96, 2, 4)
MXORT_ATTENTION(float16, Type::kFloat16, 128, 2, 2)
MXORT_ATTENTION(float16, Type::kFloat16, 256, 1, 1)
MXORT_ATTENTION(bfloat16, Type::kBFloat16, 64, 2, 4)
MXORT_ATTENTION(bfloat16, Type::kBFloat16, 96, 2, 4)
MXORT_ATTENTION(bfloat16, Type::kBFloat16, 128, 2, 2)
MXORT_ATTENTION(bfloat16, Type::kBFloat16, 256, 1, 1)
MXORT_KERNEL(256, 4) attention_merge(AttentionArgs args) { MergeSplits(args); }
#endif
