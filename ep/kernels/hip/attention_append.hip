// Around attention: what new queries, keys and values become, caches that grow and caches that hold a window.
#include "kernels/hip/attention_append.h"
#include "kernels/hip/attention_window.h"

using namespace mxort::hip;

#if defined(__gfx950__) || defined(__gfx942__)
MXORT_KERNEL(256, 2) attention_append(AppendArgs args) { Append(args); }
MXORT_KERNEL(256, 4) attention_copy(CopyCacheArgs args) { CopyCache(args); }
MXORT_KERNEL(256, 4) attention_window(WindowArgs args) { MoveWindow(args); }
#endif
