// Arguments of the attention kernels: plain structs passed by value, shared by host and device. No headers.
//
// A *row* is a query of one head. The heads that share a head of keys are a group; its rows, numbered
// position * group + head of the group, are what a workgroup works on, 16 or 32 to a tile.
#ifndef MXORT_KERNELS_HIP_ARGS_ATTENTION_H_
#define MXORT_KERNELS_HIP_ARGS_ATTENTION_H_

namespace mxort::hip {

inline constexpr unsigned kAttentionRows = 16;  // of a tile
inline constexpr unsigned kPrefillRows = 32;    // of a tile of attention_prefill.hip, which is a wave's
inline constexpr unsigned kAttentionKeys = 32;  // that a wave takes at a time
inline constexpr unsigned kAttentionWaves = 4;  // of a workgroup
inline constexpr unsigned kMostHeadSize = 256;

// How far apart, in elements, neighbours of a tensor [batch, positions, heads, size] are; a head's numbers follow each
// other.
struct HeadStrides {
  long long batch, position, head;
};

// Lengths by batch that the device knows: value b is lengths[b * stride] + plus, cut to what there can be. Null: none.
// The low half of an int64 is read with a stride of 2. With a capacity they count what a cache of that many positions
// that holds a window has of so many before the last `fresh`, and those (Resident in attention_rows.h).
struct DeviceLengths {
  const int* data;
  int stride, plus;
  int capacity, window, fresh;  // 0, 0, 0: all positions count
};

// y = softmax(scores) v over the keys that a row sees: score = softcap(scale q k) + mask + padding.
struct AttentionArgs {
  const void* q;       // T
  const void* k;       // T
  const void* v;       // T
  void* y;             // T
  float* partial;      // where splits > 1: PartialFloats of each [batch * kv head][row tile][split]
  const void* mask;    // T, or bool: false is -inf. Null: none
  const int* padding;  // 0: `filter` is added. Null: none
  const void* sink;    // T [heads]: one more score of each row, of no value. Null: none
  HeadStrides q_strides, k_strides, v_strides, y_strides;
  long long mask_batch, mask_head, mask_position;  // strides
  long long padding_batch, padding_position;       // strides
  DeviceLengths lengths;                           // of keys; none: all of `keys`
  unsigned batch, heads, kv_heads;
  unsigned group;       // heads of a group
  unsigned length;      // positions of queries
  unsigned keys;        // positions of k and v
  unsigned head_size;   // of q and k
  unsigned value_size;  // of v and y
  unsigned tiles;       // ceil(length * group / 16), or / a workgroup's rows of attention_prefill.hip
  unsigned splits;      // of a tile's keys
  int causal;           // position p sees keys up to p + offset, of a window the last `window` of these
  int from_end;         // the offset is the number of keys less `length`; else it is `offset`
  int offset;
  int window;                    // 0: none
  int smooth;                    // without a sink: a sink of 0
  unsigned mask_keys;            // keys behind these are not seen
  int mask_key;                  // stride: 0 or 1
  int mask_type;                 // Type
  int type;                      // Type of T
  float scale, softcap, filter;  // softcap 0: none
};

// New positions of q, k and v on their way: normalised, rotated, biased; k and v also to a cache. Each of the three is
// [batch, length, its heads, size]; `to` null: not wanted.
struct AppendPart {
  const void* from;                      // T
  void* to;                              // T, or rows of a cache
  const void* bias;                      // T [heads, size]; null: none
  const void* norm;                      // T [size]: RMS normalisation's weight. Null: none
  HeadStrides from_strides, to_strides;  // of a quantised cache `to` is counted in bytes
  unsigned heads, size;
  int rotary;  // rotated
  int past;    // `to` is a cache: position p is stored at past + p
  int format;  // CacheFormat
};
enum class CacheFormat : int { kPlain, kMxfp8, kMxfp4 };
struct AppendArgs {
  AppendPart part[3];
  const void* cos;  // T [positions, pairs]
  const void* sin;
  const long long* ids;   // positions of rotation; null: see below
  DeviceLengths lengths;  // of keys once these are appended: past is what that leaves. None: past is `past`
  long long ids_batch;    // stride of ids, whose elements count from 0 at `ids_position` 0, or are one a position
  int ids_position;       // 1: ids[b][p]. 0: ids[b] + p
  int rotation_batch;     // without ids: position past + p + b * rotation_batch
  unsigned batch, length;
  unsigned capacity;  // positions of the cache: nothing is stored behind it
  unsigned past;
  unsigned pairs, positions;  // of cos and sin
  int interleaved;
  int type;       // Type of T
  float epsilon;  // of the normalisation
};

// The positions before the new ones from one cache to another, zeros behind the new ones. Grid y: batch * kv heads.
struct CopyCacheArgs {
  const void* from[2];  // of keys, of values; where it is `to` there is nothing to do
  void* to[2];
  unsigned row_bytes[2];  // of a position of a head
  DeviceLengths lengths;
  unsigned past, length, kv_heads;
  unsigned from_capacity, to_capacity;
  unsigned groups;  // grid x
};

// What a step leaves in caches that hold a window, of keys and of values. Grid y: batch * kv heads.
inline constexpr unsigned kWindowPiece = 64;  // bytes of a row that a workgroup moves
struct WindowArgs {
  const void* from[2];    // as before the step, or a buffer that has the new positions too
  void* to[2];            // may be `from`
  DeviceLengths lengths;  // of all positions once the new ones are there
  unsigned length;        // new positions
  unsigned kv_heads, row_bytes, from_capacity;
  int capacity, window;
  int staged;  // `from` has the new positions
  int first;   // nothing was there before
  int clear;   // zeros behind what there is
};

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_ARGS_ATTENTION_H_
