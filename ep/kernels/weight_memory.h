// Memory for packed weights.
#ifndef MXORT_KERNELS_WEIGHT_MEMORY_H_
#define MXORT_KERNELS_WEIGHT_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <memory>

namespace mxort {

// `bytes` bytes at a multiple of 64, in huge pages where the system gives them: a product with one row of A reads every
// byte of the weights once, and in a virtual machine the walks through two levels of tables for pages of 4 KB halve the
// speed of that. Weights smaller than a huge page share one. Pages go back with the weights in them, a chunk's
// addresses with its last weights. Throws std::bad_alloc.
std::shared_ptr<uint8_t> AllocateWeights(size_t bytes);

// Takes pages that are a file's, as it is on disk, out of this process: they stay in the system's cache of files, and
// are mapped again for whoever reads them. Other memory is left alone. ONNX Runtime maps the data files of large
// models, and weights are read for the last time, mostly, when they have been packed.
void DropFilePages(const void* data, size_t bytes);

}  // namespace mxort

#endif  // MXORT_KERNELS_WEIGHT_MEMORY_H_
