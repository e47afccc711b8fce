#include "provider/options.h"

#include <charconv>
#include <limits>
#include <stdexcept>
#include <string>

namespace mxort::provider {
namespace {

// What onnxruntime-genai tells AMD's provider of a model; nothing here depends on it.
constexpr const char* kModelArch = "model_arch";

[[noreturn]] void Fail(const std::string& name, const std::string& got, const std::string& expected) {
  throw std::invalid_argument("provider option " + name + ": got '" + got + "', expected " + expected);
}

template <class Int>
Int ReadInt(const std::string& name, const std::string& text, const char* expected) {
  Int value{};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (text.empty() || error != std::errc() || stop != end) Fail(name, text, expected);
  return value;
}

bool ReadSwitch(const std::string& name, const std::string& text) {
  if (text == "1" || text == "true" || text == "True") return true;
  if (text == "0" || text == "false" || text == "False") return false;
  Fail(name, text, "0 or 1");
}

struct Row {
  const char* name;
  void (*read)(Options&, const std::string& name, const std::string& text);
};

constexpr Row kRows[] = {
    {"device_id",
     [](Options& options, const std::string& name, const std::string& text) {
       options.device_id = ReadInt<int>(name, text, "the number of a device, from 0");
       if (*options.device_id < 0) Fail(name, text, "the number of a device, from 0");
     }},
    {"memory_limit",
     [](Options& options, const std::string& name, const std::string& text) {
       options.memory_limit = ReadInt<uint64_t>(name, text, "bytes, 0 for no limit");
     }},
    {"self_check", [](Options& options, const std::string& name,
                      const std::string& text) { options.self_check = ReadSwitch(name, text); }},
    {"operators",
     [](Options& options, const std::string& name, const std::string& text) {
       if (text != "all" && text != "mx") Fail(name, text, "all or mx");
       options.only_mx = text == "mx";
     }},
    {"fusion", [](Options& options, const std::string& name,
                  const std::string& text) { options.fusion = ReadSwitch(name, text); }},
    {"graph_capture", [](Options& options, const std::string& name,
                         const std::string& text) { options.graph_capture = ReadSwitch(name, text); }},
};

const Row& RowOf(const std::string& name, const std::string& text) {
  std::string known;
  for (const Row& row : kRows) {
    if (name == row.name) return row;
    known += std::string(known.empty() ? "" : ", ") + row.name;
  }
  Fail(name, text, "one of the options " + known);
}

}  // namespace

Options ParseOptions(const KeyValues& values) {
  Options options;
  for (const auto& [name, text] : values) RowOf(name, text).read(options, name, text);
  return options;
}

KeyValues SelectOptions(const KeyValues& session_config, const char* provider) {
  KeyValues selected;
  std::string prefix = std::string("ep.") + provider + ".";  // ONNX Runtime lower-cases the provider's name
  for (char& c : prefix) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  for (auto it = session_config.lower_bound(prefix); it != session_config.end(); ++it) {
    if (it->first.compare(0, prefix.size(), prefix) != 0) break;
    const std::string name = it->first.substr(prefix.size());
    if (name != kModelArch) selected[name] = it->second;
  }
  return selected;
}

}  // namespace mxort::provider
