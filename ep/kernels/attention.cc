#include "kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/kernel.h"
#include "kernels/workspace.h"

namespace mxort {
namespace {

constexpr int64_t kRowsOfBlock = 48;         // queries of a task: what the keys' transposed copy pays for
constexpr int64_t kKeysOfChunk = 512;        // keys of a task where there is one block of queries alone
constexpr int64_t kPositionsOfTask = 128;    // appended to the cache
constexpr int64_t kSerialWork = 256 * 1024;  // products below which another thread costs more than it saves

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A head at a position: rotated where the call asks for it, and times `factor`.
void RotateHead(const AttentionCall& call, const float* from, int64_t position, float factor, float* to) {
  const int64_t pairs = call.spec.rotary ? call.rotary_pairs : 0;
  const float *cos = call.cos + position * pairs, *sin = call.sin + position * pairs;
  if (call.spec.interleaved) {
    for (int64_t i = 0; i < pairs; ++i) {
      const float x = from[2 * i], y = from[2 * i + 1];
      to[2 * i] = (x * cos[i] - y * sin[i]) * factor;
      to[2 * i + 1] = (y * cos[i] + x * sin[i]) * factor;
    }
  } else {
    for (int64_t i = 0; i < pairs; ++i) {
      const float x = from[i], y = from[pairs + i];
      to[i] = (x * cos[i] - y * sin[i]) * factor;
      to[pairs + i] = (y * cos[i] + x * sin[i]) * factor;
    }
  }
  for (int64_t i = 2 * pairs; i < call.head_size; ++i) to[i] = from[i] * factor;
}

// Where things are in one call.
struct Places {
  explicit Places(const AttentionCall& c)
      : call(c),
        group(c.spec.heads / c.spec.kv_heads),
        row((c.spec.heads + 2 * c.spec.kv_heads) * c.head_size),
        used(c.present_key == c.past_key && c.present_value == c.past_value
                 ? *std::max_element(c.past, c.past + c.batch) + c.length
                 : c.present_capacity),
        row_bytes(CacheRowBytes(c.format, c.head_size)) {}
  const float* Head(int64_t batch, int64_t position, int64_t head) const {
    return call.qkv + (batch * call.length + position) * row + head * call.head_size;
  }
  int64_t Past(int64_t batch, int64_t head) const {
    return (batch * call.spec.kv_heads + head) * call.past_capacity * row_bytes;
  }
  int64_t Present(int64_t batch, int64_t head) const {
    return (batch * call.spec.kv_heads + head) * call.present_capacity * row_bytes;
  }
  const AttentionCall& call;
  const int64_t group;      // heads of queries that share one of keys
  const int64_t row;        // of qkv
  const int64_t used;       // positions of the cache that this call reads or writes
  const int64_t row_bytes;  // of a position of a head in the cache
};

// A head at a position as the cache holds it.
void StoreHead(const AttentionCall& call, const float* values, char* to) {
  if (call.format == CacheFormat::kFloat) {
    std::copy(values, values + call.head_size, reinterpret_cast<float*>(to));
    return;
  }
  const bool wide = call.format == CacheFormat::kMxfp8;
  auto* codes = reinterpret_cast<uint8_t*>(to);
  call.quantize({values, call.head_size, wide ? WeightFormat::kMxfp8E4M3 : WeightFormat::kMxfp4, ScaleRule::kEven,
                 codes, codes + (wide ? call.head_size : call.head_size / 2)},
                {0, 1});
}

// Makes positions [begin, end) of a head's cache: those that were there, the new ones, and zeros behind them.
void FillCache(const Places& at, int64_t batch, int64_t head, int64_t begin, int64_t end) {
  const AttentionCall& call = at.call;
  const int64_t bytes = at.row_bytes, past = call.past[batch], all = past + call.length;
  const int64_t old = std::clamp(past, begin, end), zeros = std::clamp(all, begin, end);
  const auto made = [&](const char* from, char* cache) {
    char* to = cache + at.Present(batch, head);
    if (from == cache) return to;
    from += at.Past(batch, head);
    std::copy(from + begin * bytes, from + old * bytes, to + begin * bytes);
    std::fill(to + zeros * bytes, to + end * bytes, 0);
    return to;
  };
  char *keys = made(call.past_key, call.present_key), *values = made(call.past_value, call.present_value);
  thread_local std::vector<float> rotated;
  rotated.resize(static_cast<size_t>(call.head_size));
  for (int64_t position = std::max(begin, past); position < std::min(end, all); ++position) {
    const int64_t from = position - past;
    RotateHead(call, at.Head(batch, from, call.spec.heads + head), position, 1.0f, rotated.data());
    StoreHead(call, rotated.data(), keys + position * bytes);
    StoreHead(call, at.Head(batch, from, call.spec.heads + call.spec.kv_heads + head), values + position * bytes);
  }
}

// Queries [begin, end) of a group of heads, and what they have gathered.
struct Block {
  int64_t batch, head, begin, end;  // head: of keys
  int64_t rows;
  float *sums, *largest, *total;  // [rows, head_size], [rows], [rows]
};

// Nothing gathered yet, but a sink where `sinks`: a score that has no value.
void Begin(const Places& at, const Block& block, bool sinks) {
  constexpr float kLowest = -std::numeric_limits<float>::max();
  std::fill(block.sums, block.sums + block.rows * at.call.head_size, 0.0f);
  for (int64_t row = 0; row < block.rows; ++row) {
    const float sink = sinks && at.call.sink ? at.call.sink[block.head * at.group + row % at.group]
                                             : -std::numeric_limits<float>::infinity();
    block.largest[row] = std::isfinite(sink) ? sink : kLowest;
    block.total[row] = std::isinf(sink) && sink < 0 ? 0 : 1 + (sink - sink);  // NaN and infinity: NaN
  }
}

void Attend(const Places& at, const Block& block, int64_t first_key, int64_t last_key) {
  const AttentionCall& call = at.call;
  const int64_t size = call.head_size, past = call.past[block.batch];
  thread_local Workspace workspace;
  thread_local std::vector<int64_t> seen;
  seen.resize(static_cast<size_t>(2 * block.rows));
  int64_t *firsts = seen.data(), *limits = firsts + block.rows;
  const auto floats = static_cast<size_t>(block.rows * size + AttentionScratch(block.rows, size, call.format));
  auto* q = reinterpret_cast<float*>(workspace.Get(floats * sizeof(float)));
  const float scale = call.spec.scale != 0 ? call.spec.scale : 1.0f / std::sqrt(static_cast<float>(size));
  int64_t row = 0;
  for (int64_t position = block.begin; position < block.end; ++position) {
    for (int64_t g = 0; g < at.group; ++g, ++row) {
      RotateHead(call, at.Head(block.batch, position, block.head * at.group + g), past + position, scale,
                 q + row * size);
      limits[row] = past + position + 1;
      firsts[row] = call.spec.window > 0 ? std::max<int64_t>(0, limits[row] - call.spec.window) : 0;
    }
  }
  Begin(at, block, first_key == 0);
  const int64_t begin = std::max(first_key, firsts[0]), end = std::min(last_key, past + block.end);
  if (begin >= end) return;
  const int64_t cache = at.Present(block.batch, block.head);
  call.kernel({q, block.rows, size, call.present_key + cache, call.present_value + cache, at.row_bytes, call.format,
               begin, end, firsts, limits, call.spec.softcap, nullptr, 0, 0, block.sums, block.largest, block.total,
               q + block.rows * size});
}

// The sums of several ranges of keys, `parts` blocks behind each other, to rows of Y.
void Finish(const Places& at, const Block* parts, int64_t count) {
  const int64_t size = at.call.head_size;
  int64_t row = 0;
  for (int64_t position = parts->begin; position < parts->end; ++position) {
    for (int64_t g = 0; g < at.group; ++g, ++row) {
      float* y = at.call.y +
                 ((parts->batch * at.call.length + position) * at.call.spec.heads + parts->head * at.group + g) * size;
      float largest = parts->largest[row], total = 0;
      for (int64_t i = 1; i < count; ++i) largest = std::max(largest, parts[i].largest[row]);
      std::fill(y, y + size, 0.0f);
      for (int64_t i = 0; i < count; ++i) {
        const float factor = std::exp(parts[i].largest[row] - largest);
        total += parts[i].total[row] * factor;
        for (int64_t k = 0; k < size; ++k) y[k] += parts[i].sums[row * size + k] * factor;
      }
      const float share = 1 / total;
      for (int64_t k = 0; k < size; ++k) y[k] *= share;
    }
  }
}

Block BlockAt(const Places& at, int64_t batch, int64_t head, int64_t begin, int64_t end, float* memory) {
  const int64_t rows = (end - begin) * at.group;
  float* largest = memory + rows * at.call.head_size;
  return {batch, head, begin, end, rows, memory, largest, largest + rows};
}
int64_t BlockFloats(const Places& at, int64_t positions) { return positions * at.group * (at.call.head_size + 2); }

// Few queries: a task is a head and a chunk of its keys, which it also appends to the cache.
void ByKeys(const Places& at, const ParallelFor& parallel) {
  const AttentionCall& call = at.call;
  const int64_t heads = call.batch * call.spec.kv_heads, chunks = CeilDiv(at.used, kKeysOfChunk);
  const int64_t floats = BlockFloats(at, call.length);
  std::vector<float> memory(static_cast<size_t>(heads * chunks * floats));
  parallel(heads * chunks, [&](int64_t task) {
    const int64_t batch = task / chunks / call.spec.kv_heads, head = task / chunks % call.spec.kv_heads;
    const int64_t begin = task % chunks * kKeysOfChunk;
    const int64_t end = std::min(at.used, begin + kKeysOfChunk);
    FillCache(at, batch, head, begin, end);
    Attend(at, BlockAt(at, batch, head, 0, call.length, memory.data() + task * floats), begin, end);
  });
  std::vector<Block> parts;
  for (int64_t i = 0; i < heads; ++i) {
    const int64_t batch = i / call.spec.kv_heads, head = i % call.spec.kv_heads;
    const int64_t used = CeilDiv(call.past[batch] + call.length, kKeysOfChunk);
    parts.clear();
    for (int64_t chunk = 0; chunk < used; ++chunk) {
      parts.push_back(BlockAt(at, batch, head, 0, call.length, memory.data() + (i * chunks + chunk) * floats));
    }
    Finish(at, parts.data(), used);
  }
}

// Many queries: first the cache, then a task is a head and a block of queries, the last and longest first.
void ByQueries(const Places& at, int64_t positions, const ParallelFor& parallel) {
  const AttentionCall& call = at.call;
  const int64_t heads = call.batch * call.spec.kv_heads;
  const int64_t pieces = CeilDiv(at.used, kPositionsOfTask);
  parallel(heads * pieces, [&](int64_t task) {
    const int64_t begin = task % pieces * kPositionsOfTask;
    FillCache(at, task / pieces / call.spec.kv_heads, task / pieces % call.spec.kv_heads, begin,
              std::min(at.used, begin + kPositionsOfTask));
  });
  const int64_t blocks = CeilDiv(call.length, positions);
  parallel(heads * blocks, [&](int64_t task) {
    thread_local Workspace workspace;
    auto* memory =
        reinterpret_cast<float*>(workspace.Get(static_cast<size_t>(BlockFloats(at, positions)) * sizeof(float)));
    const int64_t begin = (blocks - 1 - task / heads) * positions, head = task % heads;
    const int64_t end = std::min(call.length, begin + positions);
    const Block block = BlockAt(at, head / call.spec.kv_heads, head % call.spec.kv_heads, begin, end, memory);
    Attend(at, block, 0, at.used);
    Finish(at, &block, 1);
  });
}

}  // namespace

int64_t AttentionScratch(int64_t rows, int64_t head_size, CacheFormat format) {
  return (head_size * (format == CacheFormat::kFloat ? 1 : 2) + rows) * kKeyBlock;
}

int64_t CacheRowBytes(CacheFormat format, int64_t head_size) {
  if (format == CacheFormat::kFloat) return head_size * static_cast<int64_t>(sizeof(float));
  return (format == CacheFormat::kMxfp8 ? head_size : head_size / 2) + head_size / kBlockSize;
}

void Attention(const AttentionCall& call, const ParallelFor& parallel) {
  if (call.batch == 0 || call.length == 0) return;
  const Places at(call);
  const int64_t positions = std::max<int64_t>(1, kRowsOfBlock / at.group);
  const int64_t work = call.batch * call.spec.heads * call.length * at.used * call.head_size;
  const ParallelFor& run = work < kSerialWork ? ParallelFor(SerialFor) : parallel;
  if (call.length <= positions) {
    ByKeys(at, run);
  } else {
    ByQueries(at, positions, run);
  }
}

void DenseAttention(const DenseAttentionCall& call, const ParallelFor& parallel) {
  if (call.batch == 0 || call.length == 0) return;
  const int64_t size = call.head_size, width = call.heads * size, blocks = CeilDiv(call.length, kRowsOfBlock);
  const int64_t work = call.batch * call.length * call.keys * width;
  const ParallelFor& run = work < kSerialWork ? ParallelFor(SerialFor) : parallel;
  const std::vector<int64_t> firsts(static_cast<size_t>(kRowsOfBlock), 0);
  const std::vector<int64_t> limits(static_cast<size_t>(kRowsOfBlock), call.keys);
  run(call.batch * call.heads * blocks, [&](int64_t task) {
    thread_local Workspace workspace;  // of a block
    const int64_t batch = task / blocks / call.heads, head = task / blocks % call.heads;
    const int64_t first = task % blocks * kRowsOfBlock, rows = std::min(kRowsOfBlock, call.length - first);
    const auto floats = static_cast<size_t>(rows * (2 * size + 2) + AttentionScratch(rows, size, CacheFormat::kFloat));
    auto* q = reinterpret_cast<float*>(workspace.Get(floats * sizeof(float)));
    float *sums = q + rows * size, *largest = sums + rows * size, *total = largest + rows;
    const int64_t from = (batch * call.length + first) * width + head * size;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < size; ++i) q[r * size + i] = call.query[from + r * width + i] * call.scale;
    }
    std::fill(sums, largest, 0.0f);
    std::fill(largest, total, -std::numeric_limits<float>::max());
    std::fill(total, total + rows, 0.0f);
    const int64_t keys = batch * call.keys * width + head * size;
    const int64_t* strides = call.mask_strides;
    const float* mask = call.mask + batch * strides[0] + head * strides[1] + first * strides[2];
    call.kernel({q, rows, size, reinterpret_cast<const char*>(call.key + keys),
                 reinterpret_cast<const char*>(call.value + keys), width * static_cast<int64_t>(sizeof(float)),
                 CacheFormat::kFloat, 0, call.keys, firsts.data(), limits.data(), 0, mask, strides[2], strides[3], sums,
                 largest, total, total + rows});
    for (int64_t r = 0; r < rows; ++r) {
      const float share = 1 / total[r];
      for (int64_t i = 0; i < size; ++i) call.y[from + r * width + i] = sums[r * size + i] * share;
    }
  });
}

}  // namespace mxort
