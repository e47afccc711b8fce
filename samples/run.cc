// Runs a model that mxort converted from a C++ program: the one line that matters is RegisterCustomOpsLibrary.
//
//   run <libmxort.so> <model.onnx> <token> ...
//
// The model takes int64 [1, tokens] input_ids and attention_mask; of each float output the first values are printed.
// Build: g++ -std=c++17 run.cc -I<onnxruntime headers> -L<onnxruntime library> -lonnxruntime -o run
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

void Print(const std::string& name, const Ort::Value& value) {
  const auto info = value.GetTensorTypeAndShapeInfo();
  if (info.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) return;
  std::printf("%s [", name.c_str());
  const char* comma = "";
  for (const int64_t dim : info.GetShape()) {
    std::printf("%s%lld", comma, static_cast<long long>(dim));
    comma = ", ";
  }
  std::printf("]:");
  const size_t shown = std::min<size_t>(info.GetElementCount(), 6);
  for (size_t i = 0; i < shown; ++i) std::printf(" %.6f", value.GetTensorData<float>()[i]);
  std::printf("\n");
}

void Run(const char* library, const char* model, std::vector<int64_t> tokens) {
  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "mxort");
  Ort::SessionOptions options;
  options.RegisterCustomOpsLibrary(library);
  Ort::Session session(env, model, options);

  const std::vector<int64_t> shape{1, static_cast<int64_t>(tokens.size())};
  std::vector<int64_t> mask(tokens.size(), 1);
  const auto cpu = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const char* input_names[] = {"input_ids", "attention_mask"};
  const Ort::Value inputs[] = {
      Ort::Value::CreateTensor<int64_t>(cpu, tokens.data(), tokens.size(), shape.data(), shape.size()),
      Ort::Value::CreateTensor<int64_t>(cpu, mask.data(), mask.size(), shape.data(), shape.size())};

  const std::vector<std::string> names = session.GetOutputNames();
  std::vector<const char*> output_names;
  for (const std::string& name : names) output_names.push_back(name.c_str());
  const auto outputs = session.Run(Ort::RunOptions{nullptr}, input_names, inputs, 2, output_names.data(), names.size());
  for (size_t i = 0; i < outputs.size(); ++i) Print(names[i], outputs[i]);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: %s <libmxort.so> <model.onnx> <token> ...\n", argv[0]);
    return 2;
  }
  std::vector<int64_t> tokens;
  for (int i = 3; i < argc; ++i) tokens.push_back(std::atoll(argv[i]));
  try {
    Run(argv[1], argv[2], tokens);
  } catch (const Ort::Exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
