#include "kernels/packed_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace mxort {
namespace {

constexpr const char* kVariable = "MXORT_PACKED_WEIGHTS";
constexpr size_t kPage = 4096;

// Behind the bytes, at the next page, and written when they are: a file without it was not finished.
struct End {
  std::array<char, 8> magic;
  uint64_t bytes;
  int32_t lowest, highest;  // scales that occur
};
constexpr std::array<char, 8> kMagic = {'m', 'x', 'p', 'a', 'c', 'k', 'e', 'd'};

size_t EndOffset(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

[[noreturn]] void FailFile(const std::string& path, int error) {
  throw std::runtime_error(std::string(kVariable) + ": " + path + ": " + std::strerror(error));
}
void CheckFile(bool ok, const std::string& path) {
  if (!ok) FailFile(path, errno);
}

// A file that no other process and no other thread has locked meanwhile; made where it is not there. In a folder that
// cannot be written to, one that is there is opened to be read.
class LockedFile {
 public:
  explicit LockedFile(std::string path) : path_(std::move(path)) {
    file_ = open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file_ < 0) {
      const int error = errno;
      file_ = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
      if (file_ < 0) FailFile(path_, error);
    }
    int status;
    do status = flock(file_, LOCK_EX);
    while (status != 0 && errno == EINTR);
    if (status != 0) {
      const int error = errno;
      close(file_);
      FailFile(path_, error);
    }
  }
  ~LockedFile() {
    flock(file_, LOCK_UN);  // a mapping keeps the file open, and its lock
    close(file_);
  }
  LockedFile(const LockedFile&) = delete;
  LockedFile& operator=(const LockedFile&) = delete;

  template <class T>
  bool Read(size_t offset, T* value) const {
    return pread(file_, value, sizeof *value, static_cast<off_t>(offset)) == static_cast<ssize_t>(sizeof *value);
  }
  template <class T>
  void Write(size_t offset, const T& value) const {
    const ssize_t written = pwrite(file_, &value, sizeof value, static_cast<off_t>(offset));
    CheckFile(written >= 0, path_);
    if (written != static_cast<ssize_t>(sizeof value)) FailFile(path_, ENOSPC);
    CheckFile(fsync(file_) == 0, path_);
  }
  void Reserve(size_t bytes) const {  // so that no write to a mapping finds the disk full
    if (const int error = posix_fallocate(file_, 0, static_cast<off_t>(bytes))) FailFile(path_, error);
  }
  std::shared_ptr<uint8_t> Map(size_t bytes, int protection) const {
    void* start = mmap(nullptr, bytes, protection, MAP_SHARED, file_, 0);
    CheckFile(start != MAP_FAILED, path_);
    return {static_cast<uint8_t*>(start), [bytes](uint8_t* p) { munmap(p, bytes); }};
  }
  void Synchronise(const std::shared_ptr<uint8_t>& map, size_t bytes) const {
    CheckFile(msync(map.get(), bytes, MS_SYNC) == 0, path_);
  }

 private:
  const std::string path_;
  int file_;
};

std::string Hexadecimal(const Fingerprint& fingerprint) {
  char text[2 * 16 + 1];
  std::snprintf(text, sizeof text, "%016llx%016llx", static_cast<unsigned long long>(fingerprint[0]),
                static_cast<unsigned long long>(fingerprint[1]));
  return text;
}

// Whatever the bytes depend on. A new version of the library may lay them out anew, and an older one may have mapped
// what is there.
std::string NameOf(const PackedFolder::Contents& contents) {
  return Hexadecimal(contents.codes) + Hexadecimal(contents.scales) + "-" + std::to_string(contents.spec.K) + "x" +
         std::to_string(contents.spec.N) + "-" + std::to_string(static_cast<int>(contents.spec.weight_format)) + "-" +
         contents.layout + "-" + MXORT_VERSION + ".packed";
}

bool Finished(const End& end, size_t bytes) {
  return end.magic == kMagic && end.bytes == bytes && end.lowest >= 0 && end.lowest <= end.highest &&
         end.highest <= kScaleNaN;
}

}  // namespace

std::optional<PackedFolder> PackedFolder::OfEnvironment() {
  const char* path = std::getenv(kVariable);
  if (path == nullptr || *path == '\0') return std::nullopt;
  return PackedFolder(path);
}

PackedFolder::PackedFolder(std::string path) : path_(std::move(path)) {
  CheckFile(mkdir(path_.c_str(), 0700) == 0 || errno == EEXIST, path_);
  const LockedFile file(path_ + "/points");
  if (file.Read(0, &points_)) return;
  points_ = RandomPoints();
  file.Write(0, points_);
}

std::shared_ptr<const uint8_t> PackedFolder::Map(const Contents& contents, ScaleRange* occurring,
                                                 const std::function<ScaleRange(uint8_t*)>& pack) const {
  const LockedFile file(path_ + "/" + NameOf(contents));
  const size_t offset = EndOffset(contents.bytes);
  End end;
  if (!file.Read(offset, &end) || !Finished(end, contents.bytes)) {
    file.Reserve(offset + sizeof end);
    const std::shared_ptr<uint8_t> map = file.Map(contents.bytes, PROT_READ | PROT_WRITE);
    *occurring = pack(map.get());
    file.Synchronise(map, contents.bytes);
    end = {kMagic, contents.bytes, occurring->lowest, occurring->highest};
    file.Write(offset, end);
  }
  *occurring = {end.lowest, end.highest};
  return file.Map(contents.bytes, PROT_READ);
}

}  // namespace mxort
