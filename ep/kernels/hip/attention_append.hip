// Around attention: what new queries, keys and values become, and caches that grow.
#include "kernels/hip/attention_append.h"

using namespace mxort::hip;

#if defined(__gfx950__) || defined(__gfx942__)
MXORT_KERNEL(256, 2) attention_append(AppendArgs args) { Append(args); }
MXORT_KERNEL(256, 4) attention_copy(CopyCacheArgs args) { CopyCache(args); }
#endif
