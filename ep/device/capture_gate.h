// Keeps recordings of a device's streams apart from calls that concern the whole device.
//
// On ROCm such a call (a wait for the device, a copy on its default stream, the unloading of a module, the launch of a
// graph) ends every recording on the device, in every mode and of whichever thread, and fails too. Within this process
// one waits for the other; against other libraries' calls there is no help but to record again.
#ifndef MXORT_DEVICE_CAPTURE_GATE_H_
#define MXORT_DEVICE_CAPTURE_GATE_H_

#include <condition_variable>
#include <mutex>
#include <thread>

namespace mxort::device {

class CaptureGate {
 public:
  // Before a recording begins: waits for passes, and for another recording, to end. Passes wait from now on.
  void Close() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return !closed_; });
    closed_ = true;
    closer_ = std::this_thread::get_id();
    changed_.wait(lock, [&] { return inside_ == 0; });
  }
  // The recording has ended. Any thread.
  void Open() {
    const std::lock_guard<std::mutex> lock(mutex_);
    closed_ = false;
    changed_.notify_all();
  }

  // Around a call that concerns the device.
  class Pass {
   public:
    explicit Pass(CaptureGate& gate) : gate_(gate) {
      std::unique_lock<std::mutex> lock(gate.mutex_);
      if (gate.closed_ && gate.closer_ == std::this_thread::get_id()) return;  // it would wait for itself
      gate.changed_.wait(lock, [&] { return !gate.closed_; });
      ++gate.inside_;
      granted_ = true;
    }
    ~Pass() {
      if (!granted_) return;
      const std::lock_guard<std::mutex> lock(gate_.mutex_);
      --gate_.inside_;
      gate_.changed_.notify_all();
    }
    Pass(const Pass&) = delete;
    Pass& operator=(const Pass&) = delete;
    // False: this thread is recording, and the call would end that.
    bool granted() const { return granted_; }

   private:
    CaptureGate& gate_;
    bool granted_ = false;
  };

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool closed_ = false;
  int inside_ = 0;
  std::thread::id closer_;
};

}  // namespace mxort::device

#endif  // MXORT_DEVICE_CAPTURE_GATE_H_
