// Values made once for a content and shared by all sessions of the process for as long as one of them uses them.
#ifndef MXORT_KERNELS_CONTENT_CACHE_H_
#define MXORT_KERNELS_CONTENT_CACHE_H_

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string_view>

namespace mxort {

inline size_t HashBytes(const void* data, size_t bytes) {
  return std::hash<std::string_view>()({static_cast<const char*>(data), bytes});
}

// A cache must outlive its values: static ones are leaked, because kernels of a session may be destroyed after static
// destructors have run.
template <class Key, class Value>
class ContentCache {
 public:
  // The value of `key`, or what `make` returns as std::unique_ptr<Value>; of null nothing is kept. One at a time.
  template <class Make>
  std::shared_ptr<const Value> Get(const Key& key, const Make& make) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = values_.find(key);
    if (found != values_.end()) {
      if (auto existing = found->second.lock()) return existing;
    }
    std::unique_ptr<Value> made = make();
    if (!made) return nullptr;
    // The deleter drops the dead entry, so that the map does not grow with every model that was ever loaded.
    std::shared_ptr<const Value> value(made.release(), [this, key](const Value* p) {
      delete p;
      const std::lock_guard<std::mutex> inner(mutex_);
      const auto it = values_.find(key);
      if (it != values_.end() && it->second.expired()) values_.erase(it);
    });
    values_[key] = value;
    return value;
  }

 private:
  std::mutex mutex_;
  std::map<Key, std::weak_ptr<const Value>> values_;
};

}  // namespace mxort

#endif  // MXORT_KERNELS_CONTENT_CACHE_H_
