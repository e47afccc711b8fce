// Arguments of the products of two tensors (product.hip). No headers.
#ifndef MXORT_KERNELS_HIP_ARGS_PRODUCT_H_
#define MXORT_KERNELS_HIP_ARGS_PRODUCT_H_

namespace mxort::hip {

// How an operand is read, fastest last; "rows" are the rows of A and the columns of B.
//   kElements   one element at a time: any strides
//   kAlongRows  neighbouring rows lie side by side: the row's stride is 1, and everything else keeps loads of several
//               rows aligned and whole
//   kAlongK     16 bytes along K: the stride of k is 1, K and everything else keep these loads aligned and whole
enum class Access : int { kElements, kAlongRows, kAlongK };

// All strides are in elements and not negative.
struct ProductOperand {
  const void* data;
  long long row, k;    // strides
  long long batch[3];  // strides of the batch dimensions, outermost first; 0 where broadcast
  int access;          // Access
  int unused;
};

// C[batch, m, n] = alpha * sum over k of A[batch, m, k] B[batch, k, n] + beta * bias[m, n], all of one type T.
struct ProductArgs {
  ProductOperand a, b;
  const void* bias;                 // null: none
  void* c;                          // [batches, M, N]
  float* partial;                   // [splits, batches, M, N] where splits > 1, else unused
  long long bias_row, bias_column;  // strides, 0 where broadcast
  unsigned batch1, batch2;          // extents of the second and the third batch dimension
  unsigned batches;                 // of all three
  unsigned m, n, k;
  unsigned k_per_split, splits;  // grid y = splits
  unsigned tiles_m, tiles_n;     // grid x = batches * tiles_m * tiles_n
  float alpha, beta;
};

// C = alpha * (sum over splits of partial) + beta * bias. Grid x: 256 elements.
struct ProductReduceArgs {
  const float* partial;
  const void* bias;
  void* c;
  long long bias_row, bias_column;
  unsigned elements;  // batches * M * N
  unsigned m, n;
  unsigned splits;
  float alpha, beta;
  int type;  // Type of C and bias
};

// The patches of images that a convolution's window sees, as the B of a product: columns[batch][c, i, j][y, x] =
// x[batch][c][y stride - pad + i dilation][the same of x], zero outside. [2]: height, width.
// Grid x: 256 elements of a batch, grid y: batches.
struct PatchesArgs {
  const void* x;  // T [batches, channels, size[0], size[1]]
  void* columns;  // T [batches, channels * window[0] * window[1], output[0] * output[1]]
  unsigned channels;
  unsigned size[2], window[2], output[2], stride[2], pad[2], dilation[2];
  unsigned elements;  // of columns, of a batch
};

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_ARGS_PRODUCT_H_
