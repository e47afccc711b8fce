#include "ops/spec.h"

#include <limits>
#include <stdexcept>

namespace mxort {

void Fail(const std::string& what, const std::string& got, const std::string& expected) {
  throw std::invalid_argument(what + ": got " + got + ", expected " + expected);
}

int64_t Attributes::Required(const char* name) const {
  int64_t value = 0;
  if (!Int(name, &value)) throw std::invalid_argument(std::string("attribute ") + name + " is missing");
  return value;
}

std::string Text(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? "," : "") + std::to_string(shape[i]);
  return text + "]";
}

void CheckDimension(const char* attribute, int64_t value) {
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
  if (value < 1 || value > kMax) {
    Fail(std::string("attribute ") + attribute, std::to_string(value), "1 to " + std::to_string(kMax));
  }
}

void CheckShape(const char* input, const Shape& got, const Shape& expected) {
  if (got != expected) Fail(std::string("input ") + input, "shape " + Text(got), Text(expected));
}

}  // namespace mxort
