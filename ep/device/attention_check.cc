// Self-checks of the attention kernels.
#include <algorithm>
#include <cmath>

#include "device/attention.h"
#include "device/tensor_check_table.h"
#include "kernels/quantize.h"
#include "mx_formats.h"

namespace mxort::device {
namespace {

// One batch; a group of kGroup heads of queries shares the one head of keys. Causal, the queries come last.
constexpr int64_t kGroup = 2;

struct AttentionProblem {
  int64_t length, keys, size;
  std::vector<float> q, k, v;  // [length, kGroup, size], [keys, size], [keys, size]

  AttentionProblem(CheckRun& run, int64_t of_length, int64_t of_keys, int64_t head_size)
      : length(of_length),
        keys(of_keys),
        size(head_size),
        q(run.Numbers(static_cast<size_t>(length * kGroup * size), 2)),
        k(run.Numbers(static_cast<size_t>(keys * size))),
        v(run.Numbers(static_cast<size_t>(keys * size))) {}

  float scale() const { return 3 / std::sqrt(static_cast<float>(size)); }

  std::vector<double> Expected() const {
    std::vector<double> y(q.size());
    std::vector<double> weights(static_cast<size_t>(keys));
    for (int64_t row = 0; row < length * kGroup; ++row) {
      const int64_t seen = keys - length + row / kGroup + 1;
      double total = 0;
      for (int64_t key = 0; key < seen; ++key) {
        double score = 0;
        for (int64_t i = 0; i < size; ++i) score += At(q, row, i) * At(k, key, i);
        total += weights[static_cast<size_t>(key)] = std::exp(score * static_cast<double>(scale()));
      }
      for (int64_t i = 0; i < size; ++i) {
        double sum = 0;
        for (int64_t key = 0; key < seen; ++key) sum += weights[static_cast<size_t>(key)] * At(v, key, i);
        y[static_cast<size_t>(row * size + i)] = sum / total;
      }
    }
    return y;
  }
  double At(const std::vector<float>& x, int64_t row, int64_t i) const {
    return static_cast<double>(x[static_cast<size_t>(row * size + i)]);
  }
};

// `cache`: k and v as a quantised cache has them, rows of row_bytes; null: as they are.
Status CheckAttend(CheckRun& run, const AttentionProblem& problem, hip::CacheFormat format,
                   const std::vector<uint8_t>* cache, int64_t row_bytes, double bound, KernelCheck* check) {
  AttentionKernels kernels;
  MXORT_RETURN_IF_ERROR(AttentionKernels::Load(run.device(), run.type(), format, &kernels));
  const int64_t size = problem.size, row = cache ? row_bytes : size;
  hip::AttentionArgs args{};
  args.q = run.SendNumbers(problem.q);
  args.k = cache ? run.Send(cache[0]) : run.SendNumbers(problem.k);
  args.v = cache ? run.Send(cache[1]) : run.SendNumbers(problem.v);
  args.y = run.AllocateNumbers(problem.q.size());
  args.q_strides = args.y_strides = PositionMajor(problem.length, kGroup, size);
  args.k_strides = args.v_strides = HeadMajor(problem.keys, 1, row);
  args.batch = args.kv_heads = 1;
  args.heads = kGroup;
  args.length = static_cast<unsigned>(problem.length);
  args.keys = static_cast<unsigned>(problem.keys);
  args.head_size = args.value_size = static_cast<unsigned>(size);
  args.causal = args.from_end = 1;
  args.scale = problem.scale();
  void* workspace = run.Allocate(kernels.WorkspaceBytes(args));
  run.Launch([&](void* stream) { return kernels.Attend(stream, args, workspace); });
  Compare(run.FetchNumbers(args.y, problem.q.size()), problem.Expected(), run.type(), bound, check);
  return run.status();
}

// Weights are rounded to a half type before they are multiplied by v: the same rounding of every term, whose signs are
// random, leaves that much at the most of the root mean square of their sum.
double WeightRounding(DataType type) { return type == DataType::kFloat ? 0 : RoundingOf(type); }

Status CheckPlain(CheckRun& run, int64_t length, int64_t keys, int head_size, KernelCheck* check) {
  const AttentionProblem problem(run, length, keys, head_size);
  return CheckAttend(run, problem, hip::CacheFormat::kPlain, nullptr, 0, kSumsBound + WeightRounding(run.type()),
                     check);
}

// x [rows, size] as a cache of MXFP8 or MXFP4 has it, and x as these bytes mean it.
template <class F>
std::vector<uint8_t> Quantised(WeightFormat format, int64_t size, std::vector<float>* x) {
  const int64_t codes = size * CodeBits<F>() / 8, row = codes + size / kBlockSize;
  const int64_t rows = static_cast<int64_t>(x->size()) / size;
  std::vector<uint8_t> bytes(static_cast<size_t>(rows * row));
  for (int64_t r = 0; r < rows; ++r) {
    float* values = x->data() + r * size;
    uint8_t *to = bytes.data() + r * row, *scales = to + codes;
    QuantizeArgs args{};
    args.w = values, args.k = size, args.format = format, args.rule = ScaleRule::kEven;
    args.codes = to, args.scales = scales;
    QuantizeWeights(args, {0, 1});
    for (int64_t i = 0; i < size; ++i) {
      const uint8_t code = CodeBits<F>() == 8 ? to[i] : static_cast<uint8_t>(to[i / 2] >> (i % 2 * 4) & 15);
      values[i] = DecodeElement<F>(code) * DecodeScale(scales[i / kBlockSize]);
    }
  }
  return bytes;
}

std::vector<uint8_t> Quantised(hip::CacheFormat format, int64_t size, std::vector<float>* x) {
  return format == hip::CacheFormat::kMxfp8 ? Quantised<E4M3>(WeightFormat::kMxfp8E4M3, size, x)
                                            : Quantised<E2M1>(WeightFormat::kMxfp4, size, x);
}

}  // namespace

Status CheckAttention(CheckRun& run, int head_size, KernelCheck* check) {
  return CheckPlain(run, 3, 150, head_size, check);
}
// More rows than attention_* takes; blocks of keys that all rows see, and such that not all do.
Status CheckPrefill(CheckRun& run, int head_size, KernelCheck* check) {
  return CheckPlain(run, 35, 190, head_size, check);
}
Status CheckMerge(CheckRun& run, int, KernelCheck* check) { return CheckPlain(run, 3, 600, 64, check); }

Status CheckQuantisedAttention(CheckRun& run, int bits_and_head_size, KernelCheck* check) {
  const auto format = bits_and_head_size / 1000 == 8 ? hip::CacheFormat::kMxfp8 : hip::CacheFormat::kMxfp4;
  AttentionProblem problem(run, 3, 150, bits_and_head_size % 1000);
  const std::vector<uint8_t> cache[2] = {Quantised(format, problem.size, &problem.k),
                                         Quantised(format, problem.size, &problem.v)};
  const int64_t row_bytes = static_cast<int64_t>(cache[0].size()) / problem.keys;
  return CheckAttend(run, problem, format, cache, row_bytes, kSumsBound, check);
}

// Every step is exact: x is 2 or -2, so that its RMS is 2, weights and angles are sums of few powers of two.
Status CheckAppend(CheckRun& run, int cache_format, KernelCheck* check) {
  constexpr size_t kLength = 3, kPast = 2, kCapacity = 6, kSize = 64, kPairs = 24, kHeads[3] = {3, 1, 1};
  const auto format = static_cast<hip::CacheFormat>(cache_format);
  const bool plain = format == hip::CacheFormat::kPlain;
  AttentionKernels kernels;
  MXORT_RETURN_IF_ERROR(AttentionKernels::Load(run.device(), run.type(), format, &kernels));
  const auto of = [&](size_t count, float unit, uint32_t below, float first) {
    std::vector<float> x(count);
    for (float& value : x) value = static_cast<float>(run.Whole(below)) * unit + first;
    return x;
  };
  constexpr size_t kAngles = (kPast + kLength) * kPairs;
  const std::vector<float> cos = of(kAngles, 0.5f, 5, -1), sin = of(kAngles, 0.5f, 5, -1);
  const std::vector<float> weight = of(kSize, 0.25f, 8, 0.25f), bias = of(kSize, 0.5f, 5, -1);
  hip::AppendArgs args{};
  args.cos = run.SendNumbers(cos), args.sin = run.SendNumbers(sin);
  args.batch = 1, args.length = kLength, args.capacity = kCapacity, args.past = kPast;
  args.pairs = kPairs, args.positions = kPast + kLength;
  std::vector<std::vector<float>> right(3);
  for (size_t p = 0; p < 3; ++p) {
    const bool value = p == 2;
    const std::vector<float> x = of(kLength * kHeads[p] * kSize, 4, 2, -2);
    hip::AppendPart& part = args.part[p];
    part.from = run.SendNumbers(x);
    part.bias = value ? run.SendNumbers(bias) : nullptr;
    part.norm = value ? nullptr : run.SendNumbers(weight);
    part.from_strides = PositionMajor(kLength, static_cast<int64_t>(kHeads[p]), kSize);
    part.heads = static_cast<unsigned>(kHeads[p]), part.size = kSize;
    part.rotary = !value, part.past = p > 0;
    for (size_t row = 0; row < x.size() / kSize; ++row) {
      const auto number = [&](size_t i) {
        return value ? x[row * kSize + i] + bias[i] : x[row * kSize + i] / 2 * weight[i];
      };
      const size_t angle = (kPast + row / kHeads[p]) * kPairs;
      for (size_t i = 0; i < kSize; ++i) {
        float y = number(i);
        if (!value && i < kPairs) y = y * cos[angle + i] - number(i + kPairs) * sin[angle + i];
        if (!value && i >= kPairs && i < 2 * kPairs) {
          y = y * cos[angle + i - kPairs] + number(i - kPairs) * sin[angle + i - kPairs];
        }
        right[p].push_back(y);
      }
    }
  }
  args.part[0].to = run.AllocateNumbers(right[0].size());
  args.part[0].to_strides = args.part[0].from_strides;
  std::vector<uint8_t> caches[3];
  for (size_t p = 1; p < 3; ++p) {
    caches[p] = plain ? InType(run.type(), right[p]) : Quantised(format, kSize, &right[p]);
    const size_t row = caches[p].size() / kLength;
    caches[p].insert(caches[p].begin(), kPast * row, 0xA5);
    caches[p].insert(caches[p].end(), (kCapacity - kPast - kLength) * row, 0xA5);
    args.part[p].to = run.Send(std::vector<uint8_t>(caches[p].size(), 0xA5));
    args.part[p].to_strides = HeadMajor(kCapacity, 1, static_cast<int64_t>(plain ? kSize : row));
    args.part[p].format = cache_format;
  }
  run.Launch([&](void* stream) { return kernels.Append(stream, args); });
  const std::vector<double> queries(right[0].begin(), right[0].end());
  Compare(run.FetchNumbers(args.part[0].to, queries.size()), queries, run.type(), 0, check);
  for (size_t p = 1; p < 3; ++p) CompareBytes(run.Fetch(args.part[p].to, caches[p].size()), caches[p], check);
  return run.status();
}

// Rows of 16-byte pieces of keys, of values such as only smaller loads take.
Status CheckCacheCopy(CheckRun& run, int, KernelCheck* check) {
  AttentionKernels kernels;
  MXORT_RETURN_IF_ERROR(AttentionKernels::Load(run.device(), run.type(), hip::CacheFormat::kPlain, &kernels));
  constexpr size_t kHeads = 2, kPast = 5, kLength = 2, kFrom = 6, kTo = 10, kBytes[2] = {80, 34};
  hip::CopyCacheArgs args{};
  std::vector<uint8_t> right[2];
  for (size_t i = 0; i < 2; ++i) {
    const size_t row = kBytes[i];
    const std::vector<uint8_t> from = run.Bytes(kHeads * kFrom * row);
    right[i].assign(kHeads * kTo * row, 0xA5);
    args.from[i] = run.Send(from), args.to[i] = run.Send(right[i]);
    args.row_bytes[i] = static_cast<unsigned>(row);
    for (size_t head = 0; head < kHeads; ++head) {
      uint8_t* to = right[i].data() + head * kTo * row;
      std::copy_n(&from[head * kFrom * row], kPast * row, to);
      std::fill_n(to + (kPast + kLength) * row, (kTo - kPast - kLength) * row, uint8_t{0});
    }
  }
  args.past = kPast, args.length = kLength, args.kv_heads = kHeads;
  args.from_capacity = kFrom, args.to_capacity = kTo;
  run.Launch([&](void* stream) { return kernels.Copy(stream, args, 1); });
  for (size_t i = 0; i < 2; ++i) CompareBytes(run.Fetch(args.to[i], right[i].size()), right[i], check);
  return run.status();
}

// A cache of 9 positions that holds a window of 4 is full: what a later step sees moves to its beginning, in place.
Status CheckWindow(CheckRun& run, int, KernelCheck* check) {
  AttentionKernels kernels;
  MXORT_RETURN_IF_ERROR(AttentionKernels::Load(run.device(), run.type(), hip::CacheFormat::kPlain, &kernels));
  constexpr size_t kHeads = 2, kCapacity = 9, kWindow = 4, kRow = 80;
  const std::vector<int> total = {kCapacity + 1};
  hip::WindowArgs args{};
  args.lengths = {static_cast<const int*>(run.Send(total)), 1, 0, 0, 0, 0};
  args.length = 1, args.kv_heads = kHeads, args.row_bytes = kRow, args.from_capacity = kCapacity;
  args.capacity = kCapacity, args.window = kWindow;
  std::vector<uint8_t> before[2];
  for (size_t i = 0; i < 2; ++i) {
    before[i] = run.Bytes(kHeads * kCapacity * kRow);
    args.to[i] = run.Send(before[i]);
    args.from[i] = args.to[i];
  }
  run.Launch([&](void* stream) { return kernels.MoveWindow(stream, args, 1); });
  for (size_t i = 0; i < 2; ++i) {
    const std::vector<uint8_t> after = run.Fetch(args.to[i], before[i].size());
    for (size_t head = 0; head < kHeads; ++head) {
      constexpr size_t kKept = (kWindow - 1) * kRow;
      const size_t at = head * kCapacity * kRow, end = at + kCapacity * kRow;
      const auto part = [](const std::vector<uint8_t>& x, size_t from) {
        const auto first = x.begin() + static_cast<std::ptrdiff_t>(from);
        return std::vector<uint8_t>(first, first + static_cast<std::ptrdiff_t>(kKept));
      };
      CompareBytes(part(after, at), part(before[i], end - kKept), check);
    }
  }
  return run.status();
}

}  // namespace mxort::device
