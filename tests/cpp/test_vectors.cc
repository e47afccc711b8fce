// The golden vectors of tests/vectors in C++: the same files that tests/test_formats.py and tests/test_scales.py read.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "mx_formats.h"

namespace {

using namespace mxort;

std::vector<std::vector<std::string>> ReadCsv(const std::string& path) {
  std::ifstream file(path);
  std::vector<std::vector<std::string>> rows;
  std::string line;
  std::getline(file, line);  // the header
  while (std::getline(file, line)) {
    std::vector<std::string> cells;
    std::stringstream stream(line);
    for (std::string cell; cells.size() < 4 && std::getline(stream, cell, ',');) cells.push_back(cell);
    std::string reason;
    std::getline(stream, reason);
    cells.push_back(reason);
    rows.push_back(cells);
  }
  return rows;
}

float Number(const std::string& text) { return static_cast<float>(std::strtod(text.c_str(), nullptr)); }

struct Result {
  Element element;
  float decoded;
  unsigned char floor, even, rceil;
};

template <class F>
Result Evaluate(float value, unsigned char code) {
  const unsigned bits = FloatBits(value) & kFloatMagnitude;
  return {RoundToElement<F>(value), DecodeElement<F>(code), ScaleFloor<F>(bits), ScaleEven<F>(bits),
          ScaleRceil<F>(bits)};
}

Result EvaluateFormat(const std::string& format, float value, unsigned char code) {
  if (format == E2M1::kName) return Evaluate<E2M1>(value, code);
  if (format == E2M3::kName) return Evaluate<E2M3>(value, code);
  if (format == E3M2::kName) return Evaluate<E3M2>(value, code);
  if (format == E4M3::kName) return Evaluate<E4M3>(value, code);
  if (format == E5M2::kName) return Evaluate<E5M2>(value, code);
  if (format == INT8::kName) return Evaluate<INT8>(value, code);
  std::fprintf(stderr, "unknown format %s\n", format.c_str());
  std::exit(2);
}

// Numbers in text, or pairs of hexadecimal digits, repeated.
std::vector<unsigned char> Bytes(const std::string& text, bool hex, int times) {
  std::vector<unsigned char> once, all;
  std::stringstream stream(text);
  if (hex) {
    for (size_t i = 0; i + 1 < text.size(); i += 2) {
      once.push_back(static_cast<unsigned char>(std::stoi(text.substr(i, 2), nullptr, 16)));
    }
  } else {
    for (int number; stream >> number;) once.push_back(static_cast<unsigned char>(number));
  }
  for (int i = 0; i < times; ++i) all.insert(all.end(), once.begin(), once.end());
  return all;
}

template <class F>
bool Packs(const std::vector<unsigned char>& codes, const std::vector<unsigned char>& bytes) {
  std::vector<unsigned char> packed(PackedBytes<F>()), unpacked(kBlockSize);
  PackBlock<F>(codes.data(), packed.data());
  UnpackBlock<F>(bytes.data(), unpacked.data());
  return packed == bytes && unpacked == codes;
}

bool PacksFormat(const std::vector<std::string>& row) {
  const int times = std::atoi(row[3].c_str());
  const std::vector<unsigned char> codes = Bytes(row[1], false, times), bytes = Bytes(row[2], true, times);
  if (codes.size() != kBlockSize) return false;
  if (row[0] == E2M1::kName) return Packs<E2M1>(codes, bytes);
  if (row[0] == E2M3::kName) return Packs<E2M3>(codes, bytes);
  if (row[0] == E3M2::kName) return Packs<E3M2>(codes, bytes);
  if (row[0] == E4M3::kName) return Packs<E4M3>(codes, bytes);
  return row[0] == INT8::kName && Packs<INT8>(codes, bytes);
}

int failures = 0, passed = 0;

void Expect(bool ok, const std::vector<std::string>& row) {
  ++(ok ? passed : failures);
  if (!ok)
    std::fprintf(stderr, "FAILED %s %s %s: %s\n", row[0].c_str(), row[1].c_str(), row[2].c_str(), row[4].c_str());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: test_vectors FOLDER_OF_CSV_FILES\n");
    return 2;
  }
  const std::string folder = argv[1];
  for (const auto& row : ReadCsv(folder + "/elements.csv")) {
    const unsigned char code = static_cast<unsigned char>(std::atoi(row[2].c_str()));
    const Result result = EvaluateFormat(row[0], Number(row[1]), code);
    const unsigned expected = FloatBits(Number(row[3]));
    Expect(result.element.code == code && FloatBits(result.element.value) == expected &&
               FloatBits(result.decoded) == expected,
           row);
  }
  for (const auto& row : ReadCsv(folder + "/scales.csv")) {
    const Result result = EvaluateFormat(row[0], Number(row[2]), 0);
    const int got = row[1] == "floor" ? result.floor : row[1] == "even" ? result.even : result.rceil;
    Expect(got == std::atoi(row[3].c_str()), row);
  }
  for (const auto& row : ReadCsv(folder + "/packing.csv")) Expect(PacksFormat(row), row);
  for (int byte = 0; byte < 255; ++byte) {  // scale and inverse multiply to 1, exactly, wherever both are normal
    const float product =
        DecodeScale(static_cast<unsigned char>(byte)) * InverseScale(static_cast<unsigned char>(byte));
    Expect(product == 1.0f, {"e8m0", std::to_string(byte), "", "", "scale times its inverse is 1"});
  }
  std::printf("%d passed, %d failed\n", passed, failures);
  return failures == 0 && passed > 300 ? 0 : 1;
}
