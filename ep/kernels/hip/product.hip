// Products of two tensors, batched and of any strides: tiles, skinny ones, the sum of split-K; and what makes a product
// of a convolution.
#include "kernels/hip/product_skinny.h"
#include "kernels/hip/product_tile.h"

#if defined(__gfx950__) || defined(__gfx942__)
using namespace mxort::hip;

#if defined(__gfx950__)
#define MXORT_BIG_WAVES 2
inline constexpr unsigned kSmallChunks = 8;
#else
#define MXORT_BIG_WAVES 1  // 64 KiB of LDS
inline constexpr unsigned kSmallChunks = 4;
#endif

#define MXORT_PRODUCT(name, type)                                                                                   \
  MXORT_KERNEL(256, 2) product_##name##_64x64(ProductArgs args) { ProductTile<Type::type, 2, kSmallChunks>(args); } \
  MXORT_KERNEL(256, MXORT_BIG_WAVES) product_##name##_128x128(ProductArgs args) {                                   \
    ProductTile<Type::type, 4, 4>(args);                                                                            \
  }                                                                                                                 \
  MXORT_KERNEL(256, 3) product_##name##_skinny_k(ProductArgs args) {                                                \
    ProductSkinny<Type::type, Access::kAlongK>(args);                                                               \
  }                                                                                                                 \
  MXORT_KERNEL(256, MXORT_BIG_WAVES) product_##name##_skinny_rows(ProductArgs args) {                               \
    ProductSkinny<Type::type, Access::kAlongRows>(args);                                                            \
  }
MXORT_PRODUCT(float, kFloat)
MXORT_PRODUCT(float16, kFloat16)
MXORT_PRODUCT(bfloat16, kBFloat16)

#if defined(__gfx950__)
// Loads bound the smaller tiles of these types. One wave a SIMD, which is given all registers.
MXORT_KERNEL(256, 1, 1) product_float16_256x256(ProductArgs args) { ProductTile<Type::kFloat16, 8, 4>(args); }
MXORT_KERNEL(256, 1, 1) product_bfloat16_256x256(ProductArgs args) { ProductTile<Type::kBFloat16, 8, 4>(args); }
#endif

MXORT_KERNEL(256, 4) product_reduce(ProductReduceArgs args) {
  const u32 index = GroupX() * 256 + Thread();
  if (index >= args.elements) return;
  float total = 0;
  for (u32 split = 0; split < args.splits; ++split) {  // a fixed order
    total += args.partial[static_cast<u64>(split) * args.elements + index];
  }
  total *= args.alpha;
  if (args.bias != nullptr) {
    const u32 column = index % args.n, row = index / args.n % args.m;
    const u64 at = row * static_cast<u64>(args.bias_row) + column * static_cast<u64>(args.bias_column);
    total += args.beta * LoadOne(args.type, args.bias, at);
  }
  StoreOne(args.type, args.c, index, total);
}

template <class T>
MXORT_DEVICE void Patches(const PatchesArgs& args) {
  const u32 index = GroupX() * 256 + Thread();
  if (index >= args.elements) return;
  const u32 points = args.output[0] * args.output[1], point = index % points, k = index / points;
  const u32 window = args.window[0] * args.window[1], channel = k / window, at = k % window;
  // Unsigned: what lies before the image is beyond its end.
  const u32 y = point / args.output[1] * args.stride[0] + at / args.window[1] * args.dilation[0] - args.pad[0];
  const u32 x = point % args.output[1] * args.stride[1] + at % args.window[1] * args.dilation[1] - args.pad[1];
  T value = 0;
  if (y < args.size[0] && x < args.size[1]) {
    const u64 row = (static_cast<u64>(GroupY()) * args.channels + channel) * args.size[0] + y;
    value = static_cast<const T*>(args.x)[row * args.size[1] + x];
  }
  static_cast<T*>(args.columns)[static_cast<u64>(GroupY()) * args.elements + index] = value;
}
MXORT_KERNEL(256, 4) patches_2(PatchesArgs args) { Patches<u16>(args); }
MXORT_KERNEL(256, 4) patches_4(PatchesArgs args) { Patches<u32>(args); }
#endif
