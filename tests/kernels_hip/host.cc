// The host side of the HIP kernels (selection, preshuffle) for tests, as plain C functions.
#include <cstdarg>
#include <cstdio>
#include <string>

#include "kernels/hip/preshuffle.h"
#include "kernels/hip/select.h"
#include "kernels/hip/select_experts.h"

using mxort::hip::GemmRow;
using mxort::hip::Grid;
using mxort::hip::Plan;

namespace {

std::string Format(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string Format(const char* format, ...) {
  char text[1024];
  va_list args;
  va_start(args, format);
  std::vsnprintf(text, sizeof(text), format, args);
  va_end(args);
  return text;
}

std::string Json(const Grid& g) { return Format("[%u,%u,%u]", g.x, g.y, g.z); }

}  // namespace

extern "C" {

const char* mxort_rows() {
  static std::string out;
  out = "[";
  size_t count = 0;
  const GemmRow* rows = mxort::hip::GemmRows(&count);
  for (size_t i = 0; i < count; ++i) {
    const GemmRow& r = rows[i];
    out += Format(
        "%s{\"name\":\"%s\",\"object\":\"%s\",\"arch\":\"%s\",\"operand\":%d,\"rows\":%d,\"columns\":%d,"
        "\"threads\":%d,\"steps\":%d,\"skinny\":%s,\"clocks\":%d,\"weights\":%d,"
        "\"direct\":%s}",
        i ? "," : "", r.name, r.object, r.arch ? r.arch : "", static_cast<int>(r.operand), r.rows, r.columns, r.threads,
        r.steps, r.skinny ? "true" : "false", r.clocks, static_cast<int>(r.weights), r.direct ? "true" : "false");
  }
  out += "]";
  return out.c_str();
}

const char* mxort_plan(const char* arch, int units, int64_t m, int64_t k, int64_t n, int rotation, int format,
                       int level, int type, int weights, const char* name) {
  static std::string out;
  mxort::MatMulSpec spec;
  spec.K = k;
  spec.N = n;
  spec.rotation = rotation;
  spec.activation_format = static_cast<mxort::ActivationFormat>(format);
  spec.weight_format = static_cast<mxort::WeightFormat>(weights);
  spec.accuracy_level = static_cast<mxort::AccuracyLevel>(level);
  const Plan p = mxort::hip::Select({arch, units}, spec, static_cast<mxort::DataType>(type), m, *name ? name : nullptr);
  if (p.gemm == nullptr) return "null";
  out = Format(
      "{\"gemm\":\"%s\",\"object\":\"%s\",\"threads\":%d,\"prepare\":\"%s\",\"operand\":%d,\"steps\":%u,\"terms\":%u,"
      "\"steps_per_split\":%u,\"splits\":%u,\"tiles_m\":%u,\"tiles_n\":%u,\"direct\":%s,\"emulated\":%d,",
      p.gemm->name, p.gemm->object, p.gemm->threads, p.prepare.kernel, static_cast<int>(p.prepare.operand), p.steps,
      p.terms, p.steps_per_split, p.splits, p.tiles_m, p.tiles_n, p.gemm->direct ? "true" : "false", p.emulated);
  out += "\"prepare_grid\":" + Json(p.prepare_grid) + ",\"gemm_grid\":" + Json(p.gemm_grid) +
         ",\"reduce_grid\":" + Json(p.reduce_grid);
  out += Format(",\"activation_bytes\":%zu,\"partial_bytes\":%zu}", p.activation_bytes, p.partial_bytes);
  return out.c_str();
}

const char* mxort_experts_rows() {
  static std::string out;
  out = "[";
  size_t count = 0;
  const mxort::hip::ExpertsRow* rows = mxort::hip::ExpertsRows(&count);
  for (size_t i = 0; i < count; ++i) {
    const mxort::hip::ExpertsRow& r = rows[i];
    out += Format(
        "%s{\"name\":\"%s\",\"object\":\"%s\",\"arch\":\"%s\",\"operand\":%d,\"kernels\":[\"%s\",\"%s\"],"
        "\"height\":%d,\"columns\":%d,\"clocks\":%d}",
        i ? "," : "", r.name, r.object, r.arch ? r.arch : "", static_cast<int>(r.operand), r.first, r.second, r.height,
        r.columns, r.clocks);
  }
  out += "]";
  return out.c_str();
}

const char* mxort_experts_plan(const char* arch, int units, const int64_t* sizes, int rotation, int format, int level,
                               int type, int gating, const char* name) {
  static std::string out;
  mxort::ExpertsSpec spec;
  const int64_t rows = sizes[0];
  spec.experts = sizes[1], spec.chosen = sizes[2], spec.hidden = sizes[3], spec.inner = sizes[4];
  spec.gating = static_cast<mxort::Gating>(gating);
  for (mxort::MatMulSpec* product : {&spec.first, &spec.second}) {
    product->rotation = rotation;
    product->activation_format = static_cast<mxort::ActivationFormat>(format);
    product->accuracy_level = static_cast<mxort::AccuracyLevel>(level);
  }
  const mxort::hip::ExpertsPlan p =
      mxort::hip::SelectExperts({arch, units}, spec, static_cast<mxort::DataType>(type), rows, *name ? name : nullptr);
  if (p.row == nullptr) return "null";
  out = Format(
      "{\"row\":\"%s\",\"few\":%s,\"prepare\":[\"%s\",\"%s\"],\"terms\":[%d,%d],\"steps\":[%u,%u],"
      "\"tiles_n\":[%u,%u],\"tiles\":%u,\"slots\":%u,\"wave_rows\":%u,\"waves\":%u,\"groups\":%u,"
      "\"group_waves\":%u,",
      p.row->name, p.few ? "true" : "false", p.first.kernel, p.second.kernel, p.first.terms, p.second.terms, p.steps[0],
      p.steps[1], p.tiles_n[0], p.tiles_n[1], p.tiles, p.slots, p.wave_rows, p.waves, p.groups, p.group_waves);
  out += "\"prepare_grid\":[" + Json(p.prepare_grid[0]) + "," + Json(p.prepare_grid[1]) + "],\"product_grid\":[" +
         Json(p.product_grid[0]) + "," + Json(p.product_grid[1]) + "]";
  out += Format(",\"records_bytes\":[%zu,%zu],\"products_bytes\":%zu}", p.records_bytes[0], p.records_bytes[1],
                p.products_bytes);
  return out.c_str();
}

size_t mxort_weight_bytes(int weights, int64_t n, int64_t k) {
  return mxort::hip::WeightRecordBytes(static_cast<mxort::WeightFormat>(weights), n, k);
}
void mxort_preshuffle(int weights, const uint8_t* codes, const uint8_t* scales, int64_t n, int64_t k,
                      uint8_t* records) {
  mxort::hip::PreshuffleWeights(static_cast<mxort::WeightFormat>(weights), {codes, scales}, n, k, 0,
                                mxort::hip::PanelsOf(n), records);
}

}  // extern "C"
