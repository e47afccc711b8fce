// Elementwise kernels of toy_ep.cc: Y[row, i] = A[row, i] op B[i], one workgroup for 256 elements of a row.
#include "kernels/hip/prelude.h"

using namespace mxort::hip;

struct Arguments {
  const float *a, *b;
  float* y;
  u32 columns;
};

struct AddOp {
  MXORT_METHOD float operator()(float a, float b) const { return a + b; }
};
struct MulOp {
  MXORT_METHOD float operator()(float a, float b) const { return a * b; }
};
struct ReluOp {  // called with A as B and one row
  MXORT_METHOD float operator()(float a, float) const { return a > 0 ? a : 0; }
};

template <class Op>
MXORT_DEVICE void Elementwise(const Arguments& args) {
  const u32 column = GroupX() * 256 + Thread();
  if (column >= args.columns) return;
  const u64 i = static_cast<u64>(GroupY()) * args.columns + column;
  args.y[i] = Op()(args.a[i], args.b[column]);
}

MXORT_KERNEL(256, 1) toy_add(Arguments args) { Elementwise<AddOp>(args); }
MXORT_KERNEL(256, 1) toy_mul(Arguments args) { Elementwise<MulOp>(args); }
MXORT_KERNEL(256, 1) toy_relu(Arguments args) { Elementwise<ReluOp>(args); }
