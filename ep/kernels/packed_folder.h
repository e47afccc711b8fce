// Packed weights in files of a folder, which processes share.
#ifndef MXORT_KERNELS_PACKED_FOLDER_H_
#define MXORT_KERNELS_PACKED_FOLDER_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "kernels/fingerprint.h"
#include "kernels/kernel.h"

namespace mxort {

// A file for each weight, named by its content and layout: mapped by everyone who reads it, so that a machine has it in
// memory once, and only as much of it as was read. The first who needs a file makes it, under a lock that the others
// wait for. Who may write to the folder decides what is computed: it should be its user's own.
//
// What goes wrong with a file (no space, no right, not a folder) is a std::runtime_error that names it.
class PackedFolder {
 public:
  // The one that the environment variable MXORT_PACKED_WEIGHTS names; none where it is not set. Made where it is not
  // there.
  static std::optional<PackedFolder> OfEnvironment();
  explicit PackedFolder(std::string path);

  // The points at which the folder's fingerprints are taken. They are drawn when it is made, and only its user knows
  // them.
  const Fingerprint& points() const { return points_; }

  // What a file holds, besides the bytes.
  struct Contents {
    Fingerprint codes, scales;  // of what was packed
    const char* layout;
    MatMulSpec spec;
    size_t bytes;
  };
  // `contents.bytes` bytes, page-aligned and read-only: those of the file, or where there is none, or one that was not
  // finished, what `pack` writes to where it is told. `occurring` is stored and read with them.
  std::shared_ptr<const uint8_t> Map(const Contents& contents, ScaleRange* occurring,
                                     const std::function<ScaleRange(uint8_t*)>& pack) const;

 private:
  const std::string path_;
  Fingerprint points_;
};

}  // namespace mxort

#endif  // MXORT_KERNELS_PACKED_FOLDER_H_
