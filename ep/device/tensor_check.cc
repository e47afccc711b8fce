#include "device/tensor_check.h"

#include <string>

#include "device/check_results.h"
#include "device/product.h"
#include "device/tensor_check_table.h"
#include "kernels/hip/args_attention.h"
#include "kernels/hip/args_rows.h"

namespace mxort::device {
namespace {

constexpr unsigned kAnyAttention = kAttentionKernels | kMxfp8AttentionKernels | kMxfp4AttentionKernels;
constexpr int kShort = 100, kLong = hip::kWaveRowMost + 188;  // rows of a wave, of a workgroup

constexpr int Format(hip::CacheFormat format) { return static_cast<int>(format); }
constexpr int Format(WeightFormat format) { return static_cast<int>(format); }

constexpr TensorCheckRow kRows[] = {
    {kProductKernels, "product_*_64x64", CheckProduct, Product::kTile64},
    {kProductKernels, "product_*_128x128", CheckProduct, Product::kTile128},
    {kProductKernels, "product_*_256x256", CheckProduct, Product::kTile256},
    {kProductKernels, "product_*_skinny_k", CheckProduct, Product::kSkinnyAlongK},
    {kProductKernels, "product_*_skinny_rows", CheckProduct, Product::kSkinnyAlongRows},
    {kProductKernels, "product_reduce", CheckProduct, Product::kKernels},
    {kPatchesKernels, "patches_2", CheckPatches, 2},
    {kPatchesKernels, "patches_4", CheckPatches, 4},
    {kAttentionKernels, "attention_*_64", CheckAttention, 64},
    {kAttentionKernels, "attention_*_96", CheckAttention, 96},
    {kAttentionKernels, "attention_*_128", CheckAttention, 128},
    {kAttentionKernels, "attention_*_256", CheckAttention, 256},
    {kAttentionKernels, "prefill_*_64", CheckPrefill, 64},
    {kAttentionKernels, "prefill_*_96", CheckPrefill, 96},
    {kAttentionKernels, "prefill_*_128", CheckPrefill, 128},
    {kAttentionKernels, "prefill_*_256", CheckPrefill, 256},
    {kMxfp8AttentionKernels, "attention_mxfp8_64", CheckQuantisedAttention, 8064},
    {kMxfp8AttentionKernels, "attention_mxfp8_128", CheckQuantisedAttention, 8128},
    {kMxfp8AttentionKernels, "attention_mxfp8_256", CheckQuantisedAttention, 8256},
    {kMxfp4AttentionKernels, "attention_mxfp4_64", CheckQuantisedAttention, 4064},
    {kMxfp4AttentionKernels, "attention_mxfp4_128", CheckQuantisedAttention, 4128},
    {kMxfp4AttentionKernels, "attention_mxfp4_256", CheckQuantisedAttention, 4256},
    {kAnyAttention, "attention_merge", CheckMerge, 0},
    {kAttentionKernels, "attention_append", CheckAppend, Format(hip::CacheFormat::kPlain)},
    {kMxfp8AttentionKernels, "attention_append", CheckAppend, Format(hip::CacheFormat::kMxfp8)},
    {kMxfp4AttentionKernels, "attention_append", CheckAppend, Format(hip::CacheFormat::kMxfp4)},
    {kAnyAttention, "attention_copy", CheckCacheCopy, 0},
    {kAnyAttention, "attention_window", CheckWindow, 0},
    {kRowKernels, "softmax_wave", CheckSoftmax, kShort},
    {kRowKernels, "softmax_group", CheckSoftmax, kLong},
    {kRowKernels, "reduce_rows_wave", CheckReduction, kShort},
    {kRowKernels, "reduce_rows_group", CheckReduction, kLong},
    {kRowKernels, "reduce_whole", CheckReduceWhole, kShort},
    {kRowKernels, "top", CheckTop, kShort},
    {kNormKernels, "norm_wave", CheckNorm, kShort},
    {kNormKernels, "norm_group", CheckNorm, kLong},
    {kPointwiseKernels, "pointwise", CheckPointwise, 0},
    {kPointwiseKernels, "pointwise", CheckPointwise, 1},
    {kCopyKernels, "copy_1", CheckCopy, 1},
    {kCopyKernels, "copy_2", CheckCopy, 2},
    {kCopyKernels, "copy_4", CheckCopy, 4},
    {kCopyKernels, "copy_8", CheckCopy, 8},
    {kCopyKernels, "copy_16", CheckCopy, 16},
    {kGatherKernels, "gather_1", CheckGather, 1},
    {kGatherKernels, "gather_2", CheckGather, 2},
    {kGatherKernels, "gather_4", CheckGather, 4},
    {kGatherKernels, "gather_8", CheckGather, 8},
    {kGatherKernels, "gather_16", CheckGather, 16},
    {kGatherMxKernels, "gather_mxfp4", CheckGatherMx, Format(WeightFormat::kMxfp4)},
    {kGatherMxKernels, "gather_mxfp6_e2m3", CheckGatherMx, Format(WeightFormat::kMxfp6E2M3)},
    {kGatherMxKernels, "gather_mxfp6_e3m2", CheckGatherMx, Format(WeightFormat::kMxfp6E3M2)},
    {kGatherMxKernels, "gather_mxfp8_e4m3", CheckGatherMx, Format(WeightFormat::kMxfp8E4M3)},
    {kGatherMxKernels, "gather_mxint8", CheckGatherMx, Format(WeightFormat::kMxint8)},
    {kActivateKernels, "activate", CheckActivate, 0},
};

std::string NameOf(const char* pattern, DataType type) {
  std::string name = pattern;
  const size_t star = name.find('*');
  return star == std::string::npos ? name : name.replace(star, 1, TypeName(type));
}

}  // namespace

Status CheckTensorKernels(const std::shared_ptr<Device>& device, unsigned families, DataType type, bool check,
                          std::string* wrong) {
  wrong->clear();
  constexpr unsigned kOfFloats = kMxfp8AttentionKernels | kMxfp4AttentionKernels;
  for (const TensorCheckRow& row : kRows) {
    if (!(row.families & families)) continue;
    const bool exists = row.function != CheckProduct || row.which != Product::kTile256 ||
                        Product::HasLargest(*device, static_cast<hip::Type>(type));
    if (!exists) continue;
    const DataType of = row.families & ~kOfFloats ? type : DataType::kFloat;
    KernelCheck result;
    result.kernel = NameOf(row.kernel, of);
    result.type = of;
    bool passed = true;
    MXORT_RETURN_IF_ERROR(CheckOnce(
        device, result, row.which, check,
        [&](KernelCheck* made) {
          CheckRun run(device, of);
          const Status status = row.function(run, row.which, made);
          return run.status().ok() ? status : run.status();
        },
        &passed));
    if (!passed && wrong->empty()) *wrong = result.kernel;
  }
  return {};
}

}  // namespace mxort::device
