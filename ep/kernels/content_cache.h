// Values made once for a content and shared by all sessions of the process for as long as one of them uses them.
#ifndef MXORT_KERNELS_CONTENT_CACHE_H_
#define MXORT_KERNELS_CONTENT_CACHE_H_

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

namespace mxort {

// A cache must outlive its values: static ones are leaked, because kernels of a session may be destroyed after static
// destructors have run.
template <class Key, class Value>
class ContentCache {
 public:
  // The value of `key`, or what `make` returns as std::unique_ptr<Value>. Different keys are made at the same time, one
  // key by one thread while the others that want it wait. Where `make` returns null or throws nothing is kept, and the
  // next of those that wait makes it with its own `make`.
  template <class Make>
  std::shared_ptr<const Value> Get(const Key& key, const Make& make) {
    if (std::shared_ptr<const Value> existing = FindOrReserve(key)) return existing;
    std::shared_ptr<const Value> value;
    try {
      value = Own(key, make());
    } catch (...) {
      Publish(key, nullptr);
      throw;
    }
    Publish(key, value);
    return value;
  }

 private:
  struct Slot {
    bool making = false;
    std::weak_ptr<const Value> value;
  };
  // Drops the dead slot, so that the map does not grow with every model that was ever loaded. Never to be run with the
  // lock held: no shared pointer of this class is declared after a lock.
  struct Deleter {
    ContentCache* cache;
    Key key;
    void operator()(const Value* p) const {
      delete p;
      const std::lock_guard<std::mutex> lock(cache->mutex_);
      const auto it = cache->slots_.find(key);
      if (it != cache->slots_.end() && !it->second.making && it->second.value.expired()) cache->slots_.erase(it);
    }
  };

  // Null: the slot is the caller's to fill.
  std::shared_ptr<const Value> FindOrReserve(const Key& key) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      Slot& slot = slots_[key];
      if (slot.making) {
        made_.wait(lock);
      } else if (auto existing = slot.value.lock()) {
        return existing;
      } else {
        slot.making = true;
        return nullptr;
      }
    }
  }

  std::shared_ptr<const Value> Own(const Key& key, std::unique_ptr<Value> made) {
    if (!made) return nullptr;
    const Deleter deleter{this, key};
    return std::shared_ptr<const Value>(made.release(), deleter);  // deletes it where it cannot be allocated
  }

  void Publish(const Key& key, const std::shared_ptr<const Value>& value) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto it = slots_.find(key);  // is there: nobody erases what is being made
    it->second.making = false;
    it->second.value = value;
    if (!value) slots_.erase(it);
    made_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable made_;
  std::map<Key, Slot> slots_;
};

}  // namespace mxort

#endif  // MXORT_KERNELS_CONTENT_CACHE_H_
