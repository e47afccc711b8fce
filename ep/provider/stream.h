// Streams and notifications of the provider.
#ifndef MXORT_PROVIDER_STREAM_H_
#define MXORT_PROVIDER_STREAM_H_

#include <memory>
#include <vector>

#include "device/arena.h"
#include "device/device.h"
#include "provider/runtime.h"

namespace mxort::provider {

// A stream towards ONNX Runtime, which releases it. What `arenas` lent to it is free for other streams when it has been
// waited for. `shared` may be used by several of these, one at a time (graph capture).
OrtSyncStreamImpl* MakeSyncStream(const Runtime& runtime, std::shared_ptr<device::Device> device,
                                  std::shared_ptr<device::Stream> stream,
                                  std::vector<std::shared_ptr<device::Arena>> arenas);

std::shared_ptr<device::Stream> CreateStream(const std::shared_ptr<device::Device>& device);

// Whether work on the stream is being recorded instead of run, also where the recording is lost already; waiting for it
// is an error then.
bool IsCapturing(const device::Device& device, void* stream);

}  // namespace mxort::provider

#endif  // MXORT_PROVIDER_STREAM_H_
