// AVX-512 (F, BW, DQ, VL): the float kernel on 16-lane registers. Compiled with its own flags; no standard library
// here.
#include <immintrin.h>

#include "kernels/attention_kernel.h"
#include "kernels/avx512_floats.h"
#include "kernels/cpu_kernels.h"
#include "kernels/epilogue_kernel.h"
#include "kernels/float_kernel.h"
#include "kernels/quantize_rows.h"
#include "kernels/solve_rows.h"
#include "kernels/vector_functions.h"

namespace mxort {
namespace {

bool HasAvx512(const CpuFeatures& cpu) { return cpu.avx512; }
bool Everything(const MatMulSpec&) { return true; }
int MaxPanelRows(const MatMulSpec&) { return Avx512::kMaxRows; }
size_t PanelBytes(const MatMulSpec& spec, int rows) { return FloatPanelBytes(spec, rows); }
bool Prepare(const MatMulSpec& spec, DataType type, const void* a, int row, int rows, float* scratch, uint8_t* panel) {
  return PrepareFloatRow(spec, type, a, row, rows, scratch, panel);
}
void Compute(const MatMulArgs& args, Range panels, Range strips) {
  ComputeTiles<FloatTiles<Avx512>>(args, panels, strips);
}
bool PrepareByte(const MatMulSpec& spec, DataType type, const void* a, int row, int rows, float* scratch,
                 uint8_t* panel) {
  return PrepareByteRow<Avx512>(spec, type, a, row, rows, scratch, panel);
}
void ComputeByte(const MatMulArgs& args, Range panels, Range strips) {
  ComputeTiles<FloatTiles<Avx512, ByteWeights<Avx512>>>(args, panels, strips);
}
void ComputeMxint8(const MatMulArgs& args, Range panels, Range strips) {
  ComputeTiles<FloatTiles<Avx512, Int8Weights<Avx512>>>(args, panels, strips);
}

}  // namespace

const Kernel kAvx512 = {"avx512", &kStrip16, HasAvx512, Everything, MaxPanelRows, PanelBytes, Prepare, Compute};
const Kernel kAvx512Byte = {"avx512_byte", &kStrip16Byte, HasAvx512,   Everything,
                            MaxPanelRows,  PanelBytes,    PrepareByte, ComputeByte};
const Kernel kAvx512Mxint8 = {"avx512_mxint8", &kStrip16Int8, HasAvx512,   Everything,
                              MaxPanelRows,    PanelBytes,    PrepareByte, ComputeMxint8};

const VectorFunctions kAvx512Functions = {
    [](const AttentionTile& tile) { AttendRange<Avx512>(tile); },
    [](const ActivateArgs& args) { ActivateWith(args); },
    [](const QuantizeArgs& args, Range rows) { QuantizeRows(args, rows); },
    [](const RowSumsArgs& args, Range rows) { SumRowsOf(args, rows); },
    [](const PanelArgs& args, Range rows) { SolvePanel<GptqStep>(args, rows); },
    [](const PanelArgs& args, Range rows) { SolvePanel<DescendStep>(args, rows); },
};

}  // namespace mxort
