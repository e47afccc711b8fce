// GroupQueryAttention of this library's domain as an ONNX Runtime custom op: com.microsoft's operator with what
// decoders give it, as inputs that are always present.
#ifndef MXORT_OPS_ATTENTION_OP_H_
#define MXORT_OPS_ATTENTION_OP_H_

#include <onnxruntime_c_api.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace mxort {

struct AttentionOp : OrtCustomOp {
  const OrtApi* api;
  size_t which;  // of the operators with a cache
};

// GroupQueryAttention, with a cache of floats, MXFP8 or MXFP4.
std::vector<AttentionOp> AttentionOps(const OrtApi* api, uint32_t version);

// MultiHeadAttention: attention of encoders, without a cache.
AttentionOp MakeDenseAttentionOp(const OrtApi* api, uint32_t version);

}  // namespace mxort

#endif  // MXORT_OPS_ATTENTION_OP_H_
