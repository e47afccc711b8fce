#include "provider/stream.h"

#include <utility>

#include "ops/device_status.h"

namespace mxort::provider {
namespace {

struct Notification : OrtSyncNotificationImpl {
  Notification(const Runtime& loaded, const std::shared_ptr<device::Device>& device, void* producer_stream)
      : OrtSyncNotificationImpl{}, runtime(loaded), producer(producer_stream) {
    Check(device::Event::Create(device, /*timing=*/false, &event));
    ort_version_supported = runtime.version;
    Release = [](OrtSyncNotificationImpl* self) noexcept { delete static_cast<Notification*>(self); };
    Activate = [](OrtSyncNotificationImpl* self) noexcept -> OrtStatus* {
      const auto& n = *static_cast<Notification*>(self);
      return Guard(*n.runtime.api, kEpName, [&] { Check(n.event->Record(n.producer)); });
    };
    WaitOnDevice = [](OrtSyncNotificationImpl* self, OrtSyncStream* consumer) noexcept -> OrtStatus* {
      const auto& n = *static_cast<Notification*>(self);
      return Guard(*n.runtime.api, kEpName,
                   [&] { Check(n.event->WaitOn(n.runtime.api->SyncStream_GetHandle(consumer))); });
    };
    WaitOnHost = [](OrtSyncNotificationImpl* self) noexcept -> OrtStatus* {
      const auto& n = *static_cast<Notification*>(self);
      return Guard(*n.runtime.api, kEpName, [&] { Check(n.event->Synchronize()); });
    };
  }
  const Runtime runtime;
  void* const producer;  // ONNX Runtime releases a stream's notifications before the stream
  std::unique_ptr<device::Event> event;
};

struct SyncStream : OrtSyncStreamImpl {
  SyncStream(const Runtime& loaded, std::shared_ptr<device::Device> its_device,
             std::shared_ptr<device::Stream> its_stream, std::vector<std::shared_ptr<device::Arena>> its_arenas)
      : OrtSyncStreamImpl{},
        runtime(loaded),
        device(std::move(its_device)),
        stream(std::move(its_stream)),
        arenas(std::move(its_arenas)) {
    ort_version_supported = runtime.version;
    Release = [](OrtSyncStreamImpl* self) noexcept {
      auto* s = static_cast<SyncStream*>(self);
      if (OrtStatus* status = s->Wait()) s->runtime.api->ReleaseStatus(status);  // a failed run has reported it
      delete s;
    };
    GetHandle = [](OrtSyncStreamImpl* self) noexcept { return static_cast<SyncStream*>(self)->stream->handle(); };
    CreateNotification = [](OrtSyncStreamImpl* self, OrtSyncNotificationImpl** notification) noexcept -> OrtStatus* {
      const auto& s = *static_cast<SyncStream*>(self);
      return Guard(*s.runtime.api, kEpName,
                   [&] { *notification = new Notification(s.runtime, s.device, s.stream->handle()); });
    };
    Flush = [](OrtSyncStreamImpl* self) noexcept { return static_cast<SyncStream*>(self)->Wait(); };
    OnSessionRunEnd = [](OrtSyncStreamImpl* self) noexcept { return static_cast<SyncStream*>(self)->Wait(); };
  }

  OrtStatus* Wait() const noexcept {
    return Guard(*runtime.api, kEpName, [&] {
      if (IsCapturing(*device, stream->handle())) return;
      Check(stream->Synchronize());
      for (const auto& arena : arenas) arena->ReleaseStream(stream->handle());
    });
  }

  const Runtime runtime;
  const std::shared_ptr<device::Device> device;
  const std::shared_ptr<device::Stream> stream;
  const std::vector<std::shared_ptr<device::Arena>> arenas;
};

}  // namespace

OrtSyncStreamImpl* MakeSyncStream(const Runtime& runtime, std::shared_ptr<device::Device> device,
                                  std::shared_ptr<device::Stream> stream,
                                  std::vector<std::shared_ptr<device::Arena>> arenas) {
  return new SyncStream(runtime, std::move(device), std::move(stream), std::move(arenas));
}

std::shared_ptr<device::Stream> CreateStream(const std::shared_ptr<device::Device>& device) {
  std::unique_ptr<device::Stream> stream;
  Check(device::Stream::Create(device, &stream));
  return stream;
}

bool IsCapturing(const device::Device& device, void* stream) {
  int status = device::abi::kCaptureStatusNone;
  const device::CurrentDevice current(device.hip(), device.ordinal());
  return device.hip().hipStreamIsCapturing(stream, &status) == 0 && status != device::abi::kCaptureStatusNone;
}

}  // namespace mxort::provider
