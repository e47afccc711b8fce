// What the operators' checks of attributes and shapes share: one-line errors "what: got X, expected Y".
#ifndef MXORT_OPS_SPEC_H_
#define MXORT_OPS_SPEC_H_

#include <cstdint>
#include <string>
#include <vector>

namespace mxort {

inline constexpr const char* kDomain = "mxort";

using Shape = std::vector<int64_t>;

// "[2,3]"
std::string Text(const Shape& shape);

// A node's attributes, wherever an interface of ONNX Runtime keeps them. Int, Float and String leave `value` alone and
// return false where there is none of that name; one of another type throws std::invalid_argument.
class Attributes {
 public:
  virtual ~Attributes() = default;
  virtual bool Int(const char* name, int64_t* value) const = 0;
  virtual bool Float(const char* name, float* value) const = 0;
  virtual bool String(const char* name, std::string* value) const = 0;
  int64_t Required(const char* name) const;  // throws std::invalid_argument where it is missing
};

// All throw std::invalid_argument.
[[noreturn]] void Fail(const std::string& what, const std::string& got, const std::string& expected);
void CheckDimension(const char* attribute, int64_t value);  // 1 to 2^31 - 1
void CheckShape(const char* input, const Shape& got, const Shape& expected);

}  // namespace mxort

#endif  // MXORT_OPS_SPEC_H_
