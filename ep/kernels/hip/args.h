// Kernel arguments: plain structs passed by value, shared by host and device. No headers.
#ifndef MXORT_KERNELS_HIP_ARGS_H_
#define MXORT_KERNELS_HIP_ARGS_H_

#include "kernels/hip/args_rows.h"

namespace mxort::hip {

// Of a tensor's elements; the first three in the order of mxort::DataType. Bool: a byte, 0 or 1.
enum class Type : int { kFloat, kFloat16, kBFloat16, kInt64, kInt32, kInt8, kUint8, kBool };

// Y = (A W^T) * column_scale + bias. Also of the skinny kernels.
struct GemmArgs {
  const void* a;              // activation records [ceil(M/64)][steps * terms]
  const void* w;              // weight records [ceil(N/64)][steps]
  const float* column_scale;  // [N]
  const float* bias;          // [N]
  void* y;                    // T [M, N]
  float* partial;             // float [splits, M, N] where splits > 1, else unused
  unsigned m, n;
  unsigned steps;             // of 128 k
  unsigned terms;             // A is a sum of so many operands
  unsigned steps_per_split;   // a split computes that many steps
  unsigned splits;            // grid y
  unsigned tiles_m, tiles_n;  // grid x = tiles_m * tiles_n
  int type;                   // Type of y
};

// Y = (sum over splits of partial) * column_scale + bias.
struct ReduceArgs {
  const float* partial;
  const float* column_scale;
  const float* bias;
  void* y;
  unsigned m, n;
  unsigned splits;
  unsigned grid_rows;  // grid y
  int type;
};

// The numbers of mxort::Activation.
enum class Follow : int { kNone, kRelu, kGelu, kGeluTanh, kSilu };

// The same product of a kernel that prepares A itself, computes all of K and what follows. Grid x: tiles.
inline constexpr int kNoElement = -1;
inline constexpr int kGateColumns = 32;
struct DirectArgs {
  const void* a;              // T [M, K]
  const void* w;              // weight records [ceil(N/64)][steps]
  const float* column_scale;  // [N]
  const float* bias;          // [N]
  void* y;                    // [M, y_columns]
  unsigned m, n, k;
  unsigned steps, terms;
  unsigned tiles;      // of 16 or 64 columns of N
  unsigned y_columns;  // n, or half of it where gated
  int type, y_type;    // Type of a, of y
  int rotation;
  int emulated;    // of bf16 operands: whose quantised values they are (Operand), or kNoElement
  int activation;  // Follow
  int gated;       // Y = f(gates) * values: columns 0 .. 31 of each 64 of N are the gates of the next 32
  // Whether the product is of what `norm` makes of A, its x, rounded to out_type; sum and y null: nobody else wants
  // them.
  int normalised;
  NormArgs norm;
};

// Y = f(P), or f(gates) * values where gated (DirectArgs). Grid x: 1024 columns, grid y: rows.
struct ActivateArgs {
  const float* p;  // [M, stride]
  void* y;         // T [M, n]
  unsigned long long m;
  unsigned n, stride;
  unsigned grid_rows;  // grid y
  int gated;
  int activation;  // Follow
  int type;        // Type of y
};

// A to records. grid x = steps, grid y = panels of 64 rows.
struct PrepareArgs {
  const void* a;  // T [M, K]
  void* records;
  unsigned m, k;
  unsigned steps;  // ceil(K / 128)
  unsigned terms;  // records a step
  int type;        // Type of a
  int rotation;    // 1, 32, 64, 128
};

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_ARGS_H_
