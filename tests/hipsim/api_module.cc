// HIP: modules and launches.
#include <elf.h>

#include <cstring>
#include <fstream>
#include <iterator>

#include "runtime.h"

using namespace hipsim;

namespace {

template <class T>
T load(const u8* p) {
  T v;
  memcpy(&v, p, sizeof v);
  return v;
}

// hipModuleLoadData is not told the size: ELF and bundle headers say where they end.
size_t image_size(const u8* p) {
  if (memcmp(p, ELFMAG, SELFMAG) == 0) {
    auto h = load<Elf64_Ehdr>(p);
    return h.e_shoff + static_cast<u64>(h.e_shnum) * h.e_shentsize;
  }
  if (memcmp(p, "__CLANG_OFFLOAD_BUNDLE__", 24) == 0) {
    size_t end = 0;
    const u8* q = p + 32;
    for (u64 n = load<u64>(p + 24); n--;) {
      end = std::max<size_t>(end, load<u64>(q) + load<u64>(q + 8));
      q += 24 + load<u64>(q + 16);
    }
    return end;
  }
  throw SimError("hipModuleLoadData: neither an ELF file nor an offload bundle", kInvalidImage);
}

int load_image(void** out, const void* image) {
  if (!out || !image) return kInvalidValue;
  *out = nullptr;
  int device = current_device();
  Module* m = load_module(image, image_size(static_cast<const u8*>(image)), device,
                          config().devices[static_cast<size_t>(device)]);
  runtime().modules.insert(m);
  *out = m;
  return kSuccess;
}

Module* module_of(void* handle) {
  auto* m = static_cast<Module*>(handle);
  if (!runtime().modules.count(m)) throw SimError("module handle is not alive", kInvalidHandle);
  return m;
}

const Kernel* kernel_of(void* handle) {
  for (Module* m : runtime().modules)
    for (Kernel* k : m->kernels)
      if (k == handle) return k;
  throw SimError("function handle is not alive", kInvalidHandle);
}

u32 lds_limit(const std::string& arch) { return arch == "gfx950" ? 163840 : 65536; }

template <class T>
void put(u64 at, T value) {
  memcpy(backing(at), &value, sizeof value);
  set_written(at, sizeof value);
}

// Arguments that the compiler adds (AMDGPUUsage, "Code Object V5 metadata"). Pointers to services that do not exist
// here stay unwritten, so a kernel that uses one is reported.
void hidden_arguments(const Kernel& k, const Launch& l) {
  for (const KernelArg& a : k.args) {
    if (a.kind.compare(0, 7, "hidden_") != 0) continue;
    u64 at = l.kernarg + a.offset;
    int d = a.kind.empty() ? 0 : a.kind.back() - 'x';
    auto is = [&](const char* prefix) { return a.kind.compare(0, strlen(prefix), prefix) == 0 && d >= 0 && d < 3; };
    if (is("hidden_block_count_"))
      put<u32>(at, l.grid[d]);
    else if (is("hidden_group_size_"))
      put<u16>(at, static_cast<u16>(l.block[d]));
    else if (is("hidden_remainder_"))
      put<u16>(at, 0);
    else if (is("hidden_global_offset_"))
      put<u64>(at, 0);
    else if (a.kind == "hidden_grid_dims")
      put<u16>(at, l.grid[2] * l.block[2] > 1 ? 3 : l.grid[1] * l.block[1] > 1 ? 2 : 1);
    else if (a.kind == "hidden_dynamic_lds_size")
      put<u32>(at, l.dynamic_lds);
  }
}

void write_packet(const Launch& l) {  // hsa_kernel_dispatch_packet_t, HSA runtime specification 2.9.6
  u64 p = l.packet;
  put<u16>(p + 2, 3);
  for (u32 d = 0; d < 3; d++) {
    put<u16>(p + 4 + 2 * d, static_cast<u16>(l.block[d]));
    put<u32>(p + 12 + 4 * d, l.grid[d] * l.block[d]);
  }
  put<u32>(p + 24, l.kernel->private_size);
  put<u32>(p + 28, l.kernel->lds_size + l.dynamic_lds);
  put<u64>(p + 40, l.kernarg);
}

void execute(Launch l, const std::vector<u8>& explicit_args, const std::vector<std::pair<u32, u32>>& ranges) {
  runtime().counts["launches"]++;
  if (config().lost_after >= 0 && runtime().counts["launches"] > config().lost_after)
    throw SimError("device lost (HIPSIM_LOST_AFTER)", kNoDevice);
  const Kernel& k = *l.kernel;
  if (k.private_size)
    throw SimError(
        "kernel '" + k.name + "' uses " + std::to_string(k.private_size) + " bytes of scratch memory per lane",
        kLaunchFailure);
  l.kernarg = internal_alloc(std::max<u64>(k.kernarg_size, explicit_args.size()) + 64);
  l.packet = internal_alloc(64);
  memcpy(backing(l.kernarg), explicit_args.data(), explicit_args.size());
  for (auto& r : ranges) set_written(l.kernarg + r.first, r.second);
  hidden_arguments(k, l);
  write_packet(l);
  auto release = [&] { device_free(l.kernarg), device_free(l.packet); };
  try {
    run_launch(l);
  } catch (...) {
    release();
    throw;
  }
  release();
}

int launch(void* function, const u32* grid, const u32* block, u32 shared, void* stream, void** params, void** extra) {
  const Kernel* k = kernel_of(function);
  StreamPtr s = stream_of(stream);
  Launch l;
  l.kernel = k, l.device = s->device, l.dynamic_lds = shared;
  u64 threads = 1;
  for (int d = 0; d < 3; d++) {
    l.grid[d] = grid[d], l.block[d] = block[d];
    if (grid[d] == 0 || block[d] == 0) return kInvalidConfiguration;
    if (static_cast<u64>(grid[d]) * block[d] >= 1ull << 32) return kInvalidConfiguration;
    if (k->required[d] && k->required[d] != block[d])
      throw SimError("kernel '" + k->name + "': block size differs from the one it was compiled for",
                     kInvalidConfiguration);
    threads *= block[d];
  }
  if (threads > 1024 || threads > k->max_threads)
    throw SimError(format("kernel '%s': %llu threads, compiled for at most %u", k->name.c_str(),
                          static_cast<unsigned long long>(threads), k->max_threads),
                   kInvalidConfiguration);
  if (k->lds_size + shared > lds_limit(k->module->arch))
    throw SimError(format("kernel '%s': %u bytes of LDS, device has %u", k->name.c_str(), k->lds_size + shared,
                          lds_limit(k->module->arch)),
                   kInvalidConfiguration);
  if (k->module->device != s->device)
    throw SimError("kernel '" + k->name + "' was loaded on another device than the stream's", kInvalidHandle);

  std::vector<u8> bytes;
  std::vector<std::pair<u32, u32>> ranges;
  if (extra) {
    const void* buffer = nullptr;
    size_t size = 0;
    for (void** e = extra; *e != reinterpret_cast<void*>(3); e += 2) {  // HIP_LAUNCH_PARAM_END
      if (*e == reinterpret_cast<void*>(1))
        buffer = e[1];
      else if (*e == reinterpret_cast<void*>(2))
        size = *static_cast<size_t*>(e[1]);
      else
        return kInvalidValue;
    }
    if (size && !buffer) return kInvalidValue;
    bytes.assign(static_cast<const u8*>(buffer), static_cast<const u8*>(buffer) + size);
    ranges.emplace_back(0, static_cast<u32>(size));  // HIP does not compare: what is missing is unknown to the kernel
  } else {
    bytes.resize(k->kernarg_size);
    size_t n = 0;
    for (const KernelArg& a : k->args) {
      if (a.kind.compare(0, 7, "hidden_") == 0) continue;
      if (!params || !params[n]) return kInvalidValue;
      memcpy(&bytes[a.offset], params[n++], a.size);
      ranges.emplace_back(a.offset, a.size);
    }
  }
  Module* module = k->module;
  enqueue(s, [=] {
    if (!runtime().modules.count(module)) throw SimError("module was unloaded before its kernel ran", kLaunchFailure);
    execute(l, bytes, ranges);
  });
  return kSuccess;
}

}  // namespace

HIPSIM_API int hipModuleLoadData(void** m, const void* image) {
  return guarded("hipModuleLoadData", true, [&] { return load_image(m, image); });
}
HIPSIM_API int hipModuleLoadDataEx(void** m, const void* image, unsigned, int*, void**) {
  return guarded("hipModuleLoadDataEx", true, [&] { return load_image(m, image); });
}
HIPSIM_API int hipModuleLoad(void** m, const char* path) {
  return guarded("hipModuleLoad", true, [&]() -> int {
    std::ifstream file(path, std::ios::binary);
    if (!file) return kFileNotFound;
    std::vector<char> data((std::istreambuf_iterator<char>(file)), {});
    data.resize(data.size() + 64);
    return load_image(m, data.data());
  });
}
HIPSIM_API int hipModuleUnload(void* module) {
  return guarded("hipModuleUnload", false, [&]() -> int {
    Module* m = module_of(module);
    refuse_while_capturing(m->device, kCaptureUnsupported);
    drain_all(m->device);
    runtime().modules.erase(m);
    delete m;
    return kSuccess;
  });
}
HIPSIM_API int hipModuleGetFunction(void** f, void* module, const char* name) {
  return guarded("hipModuleGetFunction", true, [&]() -> int {
    if (!f || !name) return kInvalidValue;
    for (Kernel* k : module_of(module)->kernels)
      if (k->name == name) {
        *f = k;
        return kSuccess;
      }
    return kNotFound;
  });
}
HIPSIM_API int hipModuleLaunchKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                                     unsigned bz, unsigned shared, void* stream, void** params, void** extra) {
  return guarded("hipModuleLaunchKernel", true, [&] {
    u32 grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
    return launch(f, grid, block, shared, stream, params, extra);
  });
}
HIPSIM_API int hipFuncSetAttribute(const void*, int, int) { return kSuccess; }
HIPSIM_API int hipFuncGetAttribute(int* value, int attribute, void* f) {
  return guarded("hipFuncGetAttribute", true, [&]() -> int {
    const Kernel* k = kernel_of(f);
    switch (attribute) {  // hipFunction_attribute
      case 0:
        *value = static_cast<int>(k->max_threads);
        break;
      case 1:
        *value = static_cast<int>(k->lds_size);
        break;
      case 3:
        *value = static_cast<int>(k->private_size);
        break;
      case 4:
        *value = static_cast<int>(k->vgprs);
        break;
      default:
        return kInvalidValue;
    }
    return kSuccess;
  });
}

// ---- for tests ------------------------------------------------------------------------------------------------------
// Names of the kernels of a module, one per line.
HIPSIM_API const char* hipsim_kernel_names(void* module) {
  static thread_local std::string text;
  text.clear();
  std::lock_guard<std::recursive_mutex> lock(runtime().mutex);
  if (runtime().modules.count(static_cast<Module*>(module)))
    for (Kernel* k : static_cast<Module*>(module)->kernels) text += k->name + "\n";
  return text.c_str();
}
// Instructions of a module that no table knows, one per line.
HIPSIM_API const char* hipsim_unknown_instructions(void* module) {
  static thread_local std::string text;
  text.clear();
  std::lock_guard<std::recursive_mutex> lock(runtime().mutex);
  if (runtime().modules.count(static_cast<Module*>(module)))
    for (const Inst& i : static_cast<Module*>(module)->code->records)
      if (!i.entry && i.text[0] && strncmp(i.text, "end of", 6) != 0 && strncmp(i.text, "s_code_end", 10) != 0 &&
          strncmp(i.text, "undecodable", 11) != 0)
        text += std::string(i.text) + "\n";
  return text.c_str();
}
// A kernel's instructions in their order, a line each: how often waves executed it, its pc, its text. Counted while the
// option `counts` is set; modules of the same text are counted together. Empty: no such kernel.
HIPSIM_API const char* hipsim_counts(void* module, const char* kernel) {
  static thread_local std::string text;
  text.clear();
  std::lock_guard<std::recursive_mutex> lock(runtime().mutex);
  if (!runtime().modules.count(static_cast<Module*>(module))) return "";
  const Module& m = *static_cast<Module*>(module);
  std::lock_guard<std::mutex> counting(m.code->mutex);
  for (const Kernel* k : m.kernels) {
    if (k->name != kernel) continue;
    for (size_t n = 0; n < m.code->records.size(); n++) {
      const Inst& i = m.code->records[n];
      if (i.pc < k->entry || i.pc >= k->end) continue;
      u64 count = n < m.code->counts.size() ? m.code->counts[n] : 0;
      text += format("%llu 0x%x %s\n", static_cast<unsigned long long>(count), i.pc, i.text);
    }
  }
  return text.c_str();
}
