// Attention of grouped heads over a cache of keys and values, on the CPU: what GroupQueryAttention of com.microsoft
// computes (docs/format.md). Knows no ONNX Runtime.
#ifndef MXORT_KERNELS_ATTENTION_H_
#define MXORT_KERNELS_ATTENTION_H_

#include <cstdint>

#include "kernels/kernel.h"
#include "kernels/parallel.h"
#include "kernels/quantize.h"

namespace mxort {

struct AttentionSpec {
  int64_t heads = 0;     // of queries: a multiple of kv_heads
  int64_t kv_heads = 0;  // of keys and values
  float scale = 0;       // of the scores; 0: 1 / sqrt(head size)
  float softcap = 0;     // scores become softcap * tanh(score / softcap); 0: they do not
  bool rotary = false;   // queries and keys are rotated by their position
  bool interleaved = false;
  int64_t window = 0;  // keys that a query sees, its own the last of them; 0: all up to its own
};

// How a cache holds the numbers of a head at a position: as floats, or quantised once when they come in, in blocks of
// 32 by rule "even": the codes of all blocks, then their scales.
enum class CacheFormat { kFloat, kMxfp8, kMxfp4 };
int64_t CacheRowBytes(CacheFormat format, int64_t head_size);

inline constexpr int64_t kHeadVector = 16;  // a head's size is a multiple of this; of kBlockSize where quantised
inline constexpr int kKeyBlock = 64;        // keys whose scores stay in the first-level cache

// Queries that share keys, and a range of those; q carries the scale.
struct AttentionTile {
  const float* q;  // [rows, head_size]
  int64_t rows, head_size;
  const char *keys, *values;  // [end, head_size], `stride` bytes apart
  int64_t stride;
  CacheFormat format;
  int64_t begin, end;
  const int64_t *firsts, *limits;  // [rows]: each sees the keys from its first on, before its limit
  float softcap;
  const float* mask;  // null, or what is added to the score of row r and key k: mask[r * mask_row + k * mask_key]
  int64_t mask_row, mask_key;
  // Of the softmax so far, unnormalised: sums of weighted values [rows, head_size], and of each row the largest score
  // and the sum of exp(score - largest).
  float *sums, *largest, *total;
  float* scratch;  // AttentionScratch floats
};
int64_t AttentionScratch(int64_t rows, int64_t head_size, CacheFormat format);

using AttendKeys = void (*)(const AttentionTile&);

// One call. A cache holds [batch, kv_heads, capacity, CacheRowBytes]; `present` may be `past`.
struct AttentionCall {
  AttentionSpec spec;
  AttendKeys kernel;
  QuantizeRange quantize;
  CacheFormat format;
  int64_t batch, length, head_size;  // length: new positions
  const float* qkv;                  // [batch, length, (heads + 2 kv_heads) head_size]
  const char *past_key, *past_value;
  int64_t past_capacity;
  char *present_key, *present_value;
  int64_t present_capacity;
  const int64_t* past;     // [batch]: positions that are in the cache
  const float *cos, *sin;  // [positions, rotary_pairs]
  int64_t rotary_pairs;    // at most head_size / 2: the rest of a head is not rotated
  const float* sink;       // null, or [heads]: a score more in the softmax of each, of a value of zeros; -inf: none
  float* y;                // [batch, length, heads head_size]
};
void Attention(const AttentionCall& call, const ParallelFor& parallel);

// The same without a cache, every query seeing every key: y = softmax(scale q k^T + mask) v for each head.
struct DenseAttentionCall {
  AttendKeys kernel;
  int64_t batch, length, keys, heads, head_size;
  float scale;
  const float* query;        // [batch, length, heads head_size]
  const float *key, *value;  // [batch, keys, heads head_size]
  const float* mask;         // broadcast to [batch, heads, length, keys] by these strides
  int64_t mask_strides[4];
  float* y;  // [batch, length, heads head_size]
};
void DenseAttention(const DenseAttentionCall& call, const ParallelFor& parallel);

}  // namespace mxort

#endif  // MXORT_KERNELS_ATTENTION_H_
