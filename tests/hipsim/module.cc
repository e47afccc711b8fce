// Code objects: ELF64 for AMDGPU, kernel descriptors and the metadata note (msgpack).
// Layouts: LLVM's AMDGPUUsage, "Code Object" (ELF header flags, kernel descriptor, code object V3-V5 metadata).
#include <elf.h>

#include <algorithm>
#include <map>
#include <memory>

#include "memory.h"
#include "sim.h"

namespace hipsim {
namespace {

// A reader of msgpack that keeps what a metadata note needs: maps, arrays, strings, integers, booleans.
struct Value {
  enum { kNil, kInt, kString, kArray, kMap } type = kNil;
  i64 integer = 0;
  std::string text;
  std::vector<Value> items;
  std::vector<std::pair<std::string, Value>> fields;
  const Value* get(const char* key) const {
    for (auto& f : fields)
      if (f.first == key) return &f.second;
    return nullptr;
  }
  u32 number(const char* key, u32 otherwise = 0) const {
    const Value* v = get(key);
    return v ? static_cast<u32>(v->integer) : otherwise;
  }
  std::string string(const char* key) const {
    const Value* v = get(key);
    return v ? v->text : "";
  }
};

class MsgPack {
 public:
  MsgPack(const u8* data, size_t size) : p_(data), end_(data + size) {}
  Value read() {
    u8 c = byte();
    if (c < 0x80) return integer(c);
    if (c < 0x90) return map(c & 15);
    if (c < 0xA0) return array(c & 15);
    if (c < 0xC0) return string(c & 31);
    if (c >= 0xE0) return integer(static_cast<int8_t>(c));
    switch (c) {
      case 0xC0:
        return {};
      case 0xC2:
        return integer(0);
      case 0xC3:
        return integer(1);
      case 0xCC:
        return integer(static_cast<i64>(big(1)));
      case 0xCD:
        return integer(static_cast<i64>(big(2)));
      case 0xCE:
        return integer(static_cast<i64>(big(4)));
      case 0xCF:
      case 0xD3:
        return integer(static_cast<i64>(big(8)));
      case 0xD0:
        return integer(static_cast<int8_t>(big(1)));
      case 0xD1:
        return integer(static_cast<int16_t>(big(2)));
      case 0xD2:
        return integer(static_cast<i32>(big(4)));
      case 0xD9:
        return string(big(1));
      case 0xDA:
        return string(big(2));
      case 0xDB:
        return string(big(4));
      case 0xDC:
        return array(big(2));
      case 0xDD:
        return array(big(4));
      case 0xDE:
        return map(big(2));
      case 0xDF:
        return map(big(4));
      default:
        throw SimError("metadata: msgpack type not understood", 200);
    }
  }

 private:
  u8 byte() {
    if (p_ >= end_) throw SimError("metadata: truncated", 200);
    return *p_++;
  }
  u64 big(int n) {
    u64 v = 0;
    while (n--) v = v << 8 | byte();
    return v;
  }
  static Value integer(i64 v) {
    Value r;
    r.type = Value::kInt, r.integer = v;
    return r;
  }
  Value string(u64 n) {
    if (n > static_cast<u64>(end_ - p_)) throw SimError("metadata: truncated", 200);
    Value r;
    r.type = Value::kString, r.text.assign(reinterpret_cast<const char*>(p_), n);
    p_ += n;
    return r;
  }
  Value array(u64 n) {
    Value r;
    r.type = Value::kArray;
    while (n--) r.items.push_back(read());
    return r;
  }
  Value map(u64 n) {
    Value r;
    r.type = Value::kMap;
    while (n--) {
      Value key = read();
      r.fields.emplace_back(key.text, read());
    }
    return r;
  }
  const u8 *p_, *end_;
};

template <class T>
T load(const u8* p) {
  T v;
  memcpy(&v, p, sizeof v);
  return v;
}

// An offload bundle holds one entry per architecture; take ours. Format: LLVM's ClangOffloadBundler, uncompressed.
std::pair<const u8*, size_t> unbundle(const u8* p, size_t size, const std::string& arch) {
  if (size < 32 || memcmp(p, "__CLANG_OFFLOAD_BUNDLE__", 24) != 0) return {p, size};
  u64 n = load<u64>(p + 24);
  const u8* q = p + 32;
  for (u64 k = 0; k < n; k++) {
    u64 offset = load<u64>(q), length = load<u64>(q + 8), name_length = load<u64>(q + 16);
    std::string name(reinterpret_cast<const char*>(q + 24), name_length);
    q += 24 + name_length;
    size_t at = name.find(arch);
    if (at != std::string::npos && length) return {p + offset, length};
  }
  throw SimError("no code object for " + arch + " in the bundle", 209);
}

const char* machine_name(u32 flags) {
  switch (flags & 0xFF) {
    case 0x4C:
      return "gfx942";
    case 0x4F:
      return "gfx950";
    default:
      return "another architecture";
  }
}

Kernel* read_kernel(const Value& v, Module* m) {
  auto* k = new Kernel;
  k->module = m;
  k->name = v.string(".name");
  k->kernarg_size = v.number(".kernarg_segment_size");
  k->lds_size = v.number(".group_segment_fixed_size");
  k->private_size = v.number(".private_segment_fixed_size");
  k->vgprs = v.number(".vgpr_count"), k->agprs = v.number(".agpr_count"), k->sgprs = v.number(".sgpr_count");
  k->max_threads = v.number(".max_flat_workgroup_size", 1024);
  if (const Value* r = v.get(".reqd_workgroup_size"))
    for (size_t d = 0; d < 3 && d < r->items.size(); d++) k->required[d] = static_cast<u32>(r->items[d].integer);
  if (v.number(".wavefront_size", 64) != 64) throw SimError(k->name + ": only wave64 is modelled", 209);
  if (const Value* args = v.get(".args"))
    for (const Value& a : args->items)
      k->args.push_back({a.number(".offset"), a.number(".size"), a.string(".value_kind")});
  return k;
}

// A kernel must not name registers beyond what its descriptor allocates: on a GPU those belong to another wave.
void check_registers(const Module& m, const Kernel& k) {
  u32 total = ((k.rsrc1 & 63) + 1) * 8, agpr_offset = ((k.rsrc3 & 63) + 1) * 4;
  u32 vgprs = std::min({256u, total, agpr_offset}), agprs = total > agpr_offset ? total - agpr_offset : 0;
  for (const Inst& i : m.code->records) {
    if (i.pc < k.entry || i.pc >= k.end) continue;
    for (int o = 0; o < i.ops; o++) {
      if (i.op[o].kind != Kind::kVgpr) continue;
      u32 last = i.op[o].reg + i.op[o].count - 1u;
      if (last < 256 ? last >= vgprs : last - 256 >= agprs)
        throw SimError(
            format("kernel '%s' allocates %u VGPRs and %u AGPRs but has \"%s\"", k.name.c_str(), vgprs, agprs, i.text),
            200);
    }
  }
}

}  // namespace

Module::~Module() {
  for (Kernel* k : kernels) delete k;
  if (image) device_free(image);
}

Module* load_module(const void* image, size_t size, int device, const std::string& arch) {
  auto [p, length] = unbundle(static_cast<const u8*>(image), size, arch);
  if (memcmp(p, ELFMAG, SELFMAG) != 0) throw SimError("not an ELF file or offload bundle", 200);
  auto header = load<Elf64_Ehdr>(p);
  if (header.e_machine != 224 /* EM_AMDGPU */) throw SimError("ELF file is not for AMDGPU", 200);
  if (arch != machine_name(header.e_flags))
    throw SimError("code object is for " + std::string(machine_name(header.e_flags)) + ", device is " + arch, 209);
  std::unique_ptr<Module> m(new Module);
  m->arch = arch;
  m->device = device;

  u64 extent = 0;
  std::vector<Elf64_Phdr> segments;
  for (int k = 0; k < header.e_phnum; k++) {
    segments.push_back(load<Elf64_Phdr>(p + header.e_phoff + static_cast<u64>(k) * header.e_phentsize));
    if (segments.back().p_type == PT_LOAD) extent = std::max(extent, segments.back().p_vaddr + segments.back().p_memsz);
  }
  if (!extent) throw SimError("code object has no loadable segment (was it linked?)", 200);
  m->image = device_alloc(device, extent + 4096, true);
  u64 bias = (m->image + 4095) & ~u64{4095};  // segments keep their page alignment
  memset(backing(bias), 0, extent);
  set_written(m->image, extent + (bias - m->image));
  for (auto& s : segments)
    if (s.p_type == PT_LOAD) memcpy(backing(bias + s.p_vaddr), p + s.p_offset, s.p_filesz);

  Value metadata;
  for (auto& s : segments) {
    if (s.p_type != PT_NOTE) continue;
    const u8 *q = p + s.p_offset, *end = q + s.p_filesz;
    while (q + 12 <= end) {
      u32 name_size = load<u32>(q), desc_size = load<u32>(q + 4), type = load<u32>(q + 8);
      const u8* desc = q + 12 + ((name_size + 3) & ~3u);
      if (type == 32 /* NT_AMDGPU_METADATA */) metadata = MsgPack(desc, desc_size).read();
      q = desc + ((desc_size + 3) & ~3u);
    }
  }
  const Value* kernels = metadata.get("amdhsa.kernels");
  if (!kernels) throw SimError("code object has no kernel metadata", 200);

  std::map<std::string, u64> symbols, sizes;
  u64 text = 0, text_size = 0;
  for (int k = 0; k < header.e_shnum; k++) {
    auto section = load<Elf64_Shdr>(p + header.e_shoff + static_cast<u64>(k) * header.e_shentsize);
    if (section.sh_type == SHT_PROGBITS && (section.sh_flags & SHF_EXECINSTR))
      text = section.sh_addr, text_size = section.sh_size;
    if (section.sh_type != SHT_DYNSYM && section.sh_type != SHT_SYMTAB) continue;
    auto strings = load<Elf64_Shdr>(p + header.e_shoff + section.sh_link * header.e_shentsize);
    for (u64 n = 0; n < section.sh_size / sizeof(Elf64_Sym); n++) {
      auto symbol = load<Elf64_Sym>(p + section.sh_offset + n * sizeof(Elf64_Sym));
      std::string name = reinterpret_cast<const char*>(p + strings.sh_offset + symbol.st_name);
      symbols[name] = symbol.st_value, sizes[name] = symbol.st_size;
    }
  }
  m->text_base = bias + text;
  m->text_size = static_cast<u32>(text_size);
  for (const Value& v : kernels->items) {
    Kernel* k = read_kernel(v, m.get());
    m->kernels.push_back(k);
    auto descriptor = symbols.find(v.string(".symbol"));
    if (descriptor == symbols.end()) throw SimError("no kernel descriptor " + v.string(".symbol"), 200);
    const u8* d = backing(bias + descriptor->second);
    if (load<u32>(d) != k->lds_size)
      throw SimError(k->name + ": LDS size differs between descriptor and metadata", 200);
    k->entry = static_cast<u32>(descriptor->second + load<u64>(d + 16) - text);
    k->rsrc3 = load<u32>(d + 44), k->rsrc1 = load<u32>(d + 48), k->rsrc2 = load<u32>(d + 52);
    k->properties = load<u16>(d + 56), k->preload = load<u16>(d + 58);
    k->end = k->entry + static_cast<u32>(sizes[k->name]);
  }
  m->code = decode(arch, backing(m->text_base), m->text_size);
  for (Kernel* k : m->kernels) {
    check_registers(*m, *k);
    if (k->preload & 127) k->entry += 256;  // firmware that preloads enters behind the compatibility prologue
  }
  return m.release();
}

}  // namespace hipsim
