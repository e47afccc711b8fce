// Attention over quantised caches, of floats, by format and the largest head size.
#include "kernels/hip/attention_decode.h"
#include "kernels/hip/attention_mx.h"

using namespace mxort::hip;

#define MXORT_ATTENTION(name, format, size, ...)                                 \
  MXORT_KERNEL(256, __VA_ARGS__) attention_##name##_##size(AttentionArgs args) { \
    Decode<MxHead<mxort::format, size>>(args);                                   \
  }

#if defined(__gfx950__) || defined(__gfx942__)
MXORT_ATTENTION(mxfp8, E4M3, 64, 2, 2)
MXORT_ATTENTION(mxfp8, E4M3, 128, 1, 2)
MXORT_ATTENTION(mxfp8, E4M3, 256, 1, 1)
MXORT_ATTENTION(mxfp4, E2M1, 64, 2, 2)
MXORT_ATTENTION(mxfp4, E2M1, 128, 1, 2)
MXORT_ATTENTION(mxfp4, E2M1, 256, 1, 1)
#endif
