// From code bytes to instruction records: LLVM's disassembler through its C API (opened at run time, so that no LLVM
// headers are needed), then one parser for the printed operands. Fields that are simplest in the encoding (waits,
// branches, offsets, DPP, SDWA, packed modifiers) are taken from the bytes; encodings: LLVM's assembler output.
#include <dlfcn.h>

#include <cmath>
#include <cstdlib>
#include <mutex>

#include "sim.h"

namespace hipsim {
namespace {

struct Llvm {
  void* (*create)(const char*, const char*, void*, int, void*, void*) = nullptr;
  size_t (*decode)(void*, u8*, u64, u64, char*, size_t) = nullptr;
  void (*dispose)(void*) = nullptr;
};

const Llvm& llvm() {
  static Llvm l;
  static std::once_flag once;
  std::call_once(once, [] {
    const char* override_path = getenv("HIPSIM_LLVM");
    const char* names[] = {override_path,     "libLLVM.so.22.1",
                           "libLLVM-22.so",   "/usr/lib/llvm-22/lib/libLLVM.so.22.1",
                           "libLLVM.so.23.1", "libLLVM.so.21.1"};
    void* lib = nullptr;
    for (const char* n : names)
      if (n && !lib) lib = dlopen(n, RTLD_NOW | RTLD_LOCAL);
    if (!lib) throw SimError("libLLVM 22 not found: install llvm-22, or name it in HIPSIM_LLVM", 302);
    for (const char* init : {"LLVMInitializeAMDGPUTargetInfo", "LLVMInitializeAMDGPUTarget",
                             "LLVMInitializeAMDGPUTargetMC", "LLVMInitializeAMDGPUDisassembler"})
      if (void* f = dlsym(lib, init)) reinterpret_cast<void (*)()>(f)();
    l.create = reinterpret_cast<decltype(l.create)>(dlsym(lib, "LLVMCreateDisasmCPU"));
    l.decode = reinterpret_cast<decltype(l.decode)>(dlsym(lib, "LLVMDisasmInstruction"));
    l.dispose = reinterpret_cast<decltype(l.dispose)>(dlsym(lib, "LLVMDisasmDispose"));
    if (!l.create || !l.decode) throw SimError("libLLVM lacks the disassembler's C API", 302);
  });
  return l;
}

struct Named {
  const char* name;
  u16 reg;
  u8 count;
};
constexpr Named kNamed[] = {{"vcc", 106, 2},
                            {"vcc_lo", 106, 1},
                            {"vcc_hi", 107, 1},
                            {"exec", 126, 2},
                            {"exec_lo", 126, 1},
                            {"exec_hi", 127, 1},
                            {"m0", 124, 1},
                            {"flat_scratch", 102, 2},
                            {"flat_scratch_lo", 102, 1},
                            {"flat_scratch_hi", 103, 1},
                            {"xnack_mask", 104, 2}};

bool parse_register(const std::string& t, Operand& o) {
  for (const Named& n : kNamed)
    if (t == n.name) {
      o.kind = Kind::kSgpr, o.reg = n.reg, o.count = n.count;
      return true;
    }
  size_t at = 1;
  u16 base = 0;
  if (t[0] == 'v')
    o.kind = Kind::kVgpr;
  else if (t[0] == 'a')
    o.kind = Kind::kVgpr, base = kAgpr0;
  else if (t[0] == 's')
    o.kind = Kind::kSgpr;
  else if (t.compare(0, 4, "ttmp") == 0)
    o.kind = Kind::kSgpr, base = 108, at = 4;
  else
    return false;
  if (at >= t.size()) return false;
  char* end;
  if (t[at] == '[') {
    long a = strtol(t.c_str() + at + 1, &end, 10), b = a;
    if (*end == ':') b = strtol(end + 1, &end, 10);
    o.reg = static_cast<u16>(base + a), o.count = static_cast<u8>(b - a + 1);
    return *end == ']';
  }
  if (t[at] < '0' || t[at] > '9') return false;
  o.reg = static_cast<u16>(base + strtol(t.c_str() + at, &end, 10)), o.count = 1;
  return *end == 0;
}

Operand parse_operand(std::string t) {
  Operand o;
  auto strip = [&](const char* prefix, char close) {
    size_t n = strlen(prefix);
    if (t.size() > n && t.compare(0, n, prefix) == 0 && t.back() == close) {
      t = t.substr(n, t.size() - n - 1);
      return true;
    }
    return false;
  };
  if (t.size() > 1 && t[0] == '-' && (t[1] == 'v' || t[1] == 's' || t[1] == 'a' || t[1] == '|' || t[1] == 'e'))
    o.neg = true, t = t.substr(1);
  if (strip("neg(", ')')) o.neg = true;
  if (strip("sext(", ')')) o.sext = true;
  if (strip("abs(", ')')) o.abs = true;
  if (strip("|", '|')) o.abs = true;
  if (t == "off")
    o.kind = Kind::kOff;
  else if (t == "scc" || t == "src_scc")
    o.kind = Kind::kScc;
  else if (parse_register(t, o))
    return o;
  else {
    if (strip("lit(", ')')) {
    }
    char* end;
    o.kind = Kind::kConst;
    if (t.compare(0, 2, "0x") != 0 && t.find('.') != std::string::npos) {
      o.is_float = true;
      o.fval = strtod(t.c_str(), &end);
    } else {
      o.bits = t[0] == '-' ? static_cast<u64>(strtoll(t.c_str(), &end, 0)) : strtoull(t.c_str(), &end, 0);
    }
    if (*end || t.empty()) o.kind = Kind::kText;
  }
  return o;
}

u16 half_bits(double v) {  // inline constants are exact in half precision except 1/(2 pi)
  if (std::fabs(v - 0.15915494) < 1e-6) return 0x3118;
  if (v == 0) return 0;
  int e;
  double m = std::frexp(std::fabs(v), &e);
  return static_cast<u16>((v < 0 ? 0x8000 : 0) | (e + 14) << 10 | static_cast<int>((m * 2 - 1) * 1024));
}

void resolve_literal(Operand& o, Lit lit) {
  if (o.kind != Kind::kConst) return;
  if (o.is_float) {
    float f = static_cast<float>(o.fval);
    u32 b;
    memcpy(&b, &f, 4);
    o.bits = b;
    if (lit == Lit::kF16) o.bits = half_bits(o.fval);
    if (lit == Lit::kB64 || lit == Lit::kF64) memcpy(&o.bits, &o.fval, 8);
  } else if (lit == Lit::kF64 && (o.bits >> 32) == 0 && o.bits > 64) {
    o.bits <<= 32;  // a 32-bit literal is the upper half of the double
  } else if (lit == Lit::kB32 || lit == Lit::kF16) {
    o.bits &= 0xFFFFFFFF;
  }
}

long number_after(const std::string& word, size_t at) { return strtol(word.c_str() + at, nullptr, 0); }

void parse_modifier(Inst& i, const std::string& w) {
  auto is = [&](const char* name) { return w.compare(0, strlen(name), name) == 0; };
  if (w == "clamp")
    i.clamp = true;
  else if (w == "mul:2")
    i.omod = 1;
  else if (w == "mul:4")
    i.omod = 2;
  else if (w == "div:2")
    i.omod = 3;
  else if (is("cbsz:"))
    i.cbsz = static_cast<u8>(number_after(w, 5));
  else if (is("blgp:"))
    i.blgp = static_cast<u8>(number_after(w, 5));
  else if (is("abid:"))
    i.abid = static_cast<u8>(number_after(w, 5));
  else if (is("bitop3:"))
    i.imm = static_cast<u32>(number_after(w, 7));
  else if (is("offset:") && w[7] != 's')
    i.offset = static_cast<i32>(number_after(w, 7));
  else if (w == "gds")
    throw SimError("GDS is not modelled");
}

void fields_from_bytes(Inst& i) {
  u32 a = i.raw[0], b = i.raw[1];
  if ((a >> 23) == 0x1A7) {  // VOP3P
    i.op_sel = (a >> 11) & 7, i.op_sel_hi = static_cast<u8>(((b >> 27) & 3) | ((a >> 14) & 1) << 2);
    i.neg_hi = (a >> 8) & 7, i.neg_lo = (b >> 29) & 7;
    i.clamp = (a >> 15) & 1;
  } else if ((a >> 26) == 0x34) {  // VOP3
    i.op_sel = (a >> 11) & 15;
  } else if ((a >> 26) == 0x36) {  // DS
    i.offset = static_cast<i32>(a & 0xFFFF);
  } else if ((a >> 26) == 0x38) {  // MUBUF
    i.offset = static_cast<i32>(a & 0xFFF);
    i.offen = (a >> 12) & 1, i.idxen = (a >> 13) & 1, i.returns = (a >> 14) & 1, i.lds = (a >> 16) & 1;
  } else if ((a >> 26) == 0x37) {  // FLAT, GLOBAL, SCRATCH
    i.offset = static_cast<i32>((a & 0x1FFF) ^ 0x1000) - 0x1000;
    i.segment = (a >> 14) & 3, i.returns = (a >> 16) & 1;
  } else if ((a >> 23) == 0x17F || (a >> 28) == 0xB) {  // SOPP, SOPK
    i.imm = a & 0xFFFF;
  }
  // VOP1, VOP2, VOPC with a second dword of DPP (src0 = 250) or SDWA (src0 = 249)
  if (!(a >> 31) && (a & 0x1FF) == 250) {
    i.dpp = true;
    i.dpp_ctrl = (b >> 8) & 0x1FF, i.bound_ctrl = (b >> 19) & 1, i.bank_mask = (b >> 24) & 15,
    i.row_mask = (b >> 28) & 15;
  } else if (!(a >> 31) && (a & 0x1FF) == 249) {
    i.sdwa = true;
    bool compare = (a >> 25) == 0x3E;
    if (!compare)
      i.dst_sel = (b >> 8) & 7, i.dst_unused = (b >> 11) & 3, i.omod = (b >> 14) & 3, i.clamp = (b >> 13) & 1;
    i.src0_sel = (b >> 16) & 7, i.src1_sel = (b >> 24) & 7;
  }
}

std::vector<std::string> split_operands(const std::string& text) {
  std::vector<std::string> out;
  std::string current;
  int depth = 0;
  for (char c : text) {
    if (c == '[' || c == '(') depth++;
    if (c == ']' || c == ')') depth--;
    if (c == ',' && depth == 0)
      out.push_back(current), current.clear();
    else if (c == ' ' && current.empty())
      continue;
    else
      current += c;
  }
  if (!current.empty()) out.push_back(current);
  return out;
}

void unknown_instruction(Wave&, const Inst& i) {
  throw SimError("unknown opcode: \"" + std::string(i.text) + "\" is not modelled (add it to the table of its unit)",
                 98);
}
void bad_operands(Wave&, const Inst& i) {
  throw SimError("operands not understood: \"" + std::string(i.text) + "\"", 98);
}

void parse_text(Code& code, Inst& i, const char* printed) {
  std::string t = printed;
  size_t begin = t.find_first_not_of(" \t");
  t = begin == std::string::npos ? "" : t.substr(begin);
  code.texts.push_back(t);
  i.text = code.texts.back().c_str();
  size_t space = t.find_first_of(" \t");
  std::string name = t.substr(0, space);
  for (const char* suffix : {"_e32", "_e64", "_sdwa", "_dpp"}) {
    size_t n = strlen(suffix);
    if (name.size() > n && name.compare(name.size() - n, n, suffix) == 0) name.resize(name.size() - n);
  }
  i.entry = find_op(name);
  i.fn = i.entry ? i.entry->fn : unknown_instruction;
  fields_from_bytes(i);
  if (!i.entry || space == std::string::npos) return;
  auto parts = split_operands(t.substr(space + 1));
  for (size_t n = 0; n < parts.size(); n++) {
    std::string part = parts[n];
    // The last operand carries the modifiers, separated by spaces.
    std::vector<std::string> words;
    for (size_t at = 0; at < part.size();) {
      size_t stop = part.find(' ', at);
      if (stop == std::string::npos) stop = part.size();
      if (stop > at) words.push_back(part.substr(at, stop - at));
      at = stop + 1;
    }
    for (size_t k = 0; k < words.size(); k++) {
      if (k > 0 || words[k].find(':') != std::string::npos) {
        bool reg = words[k].find('[') < words[k].find(':');  // v[0:1], -v[0:1]; not op_sel:[0,1]
        if (k > 0 || !reg) {
          parse_modifier(i, words[k]);
          continue;
        }
      }
      if (i.ops == 7) {
        i.fn = bad_operands;
        return;
      }
      Operand o = parse_operand(words[k]);
      resolve_literal(o, i.entry->lit);
      i.op[i.ops++] = o;
    }
  }
  // The accumulating forms read their destination as a third source.
  if (name.compare(0, 6, "v_fmac") == 0 || name.compare(0, 7, "v_dot2c") == 0) i.op[3] = i.op[0], i.ops = 4;
}

std::shared_ptr<const Code> decode_fresh(const std::string& arch, const u8* text, u32 size) {
  const Llvm& l = llvm();
  void* context = l.create("amdgcn-amd-amdhsa", arch.c_str(), nullptr, 0, nullptr, nullptr);
  if (!context) throw SimError("libLLVM has no disassembler for " + arch, 302);
  auto code = std::make_shared<Code>();
  code->index_of.assign(size / 4 + 1, -1);
  char buffer[512];
  for (u32 pc = 0; pc + 4 <= size;) {
    Inst i;
    size_t n = l.decode(context, const_cast<u8*>(text) + pc, size - pc, pc, buffer, sizeof buffer);
    if (n == 0) {
      i.fn = unknown_instruction, i.text = "undecodable bytes";
      n = 4;
    }
    i.pc = pc, i.size = static_cast<u8>(n);
    memcpy(i.raw, text + pc, std::min<size_t>(n, sizeof i.raw));
    if (i.fn == nullptr) parse_text(*code, i, buffer);
    code->index_of[pc / 4] = static_cast<i32>(code->records.size());
    code->records.push_back(std::move(i));
    pc += static_cast<u32>(n);
  }
  if (l.dispose) l.dispose(context);
  Inst end;  // running off the text stops with a name
  end.fn = unknown_instruction, end.text = "end of the code section", end.pc = size;
  code->records.push_back(end);
  for (Inst& i : code->records)
    if (strncmp(i.text, "s_cbranch", 9) == 0 || strncmp(i.text, "s_branch", 8) == 0) {
      i64 to = static_cast<i64>(i.pc) + 4 + 4 * static_cast<int16_t>(i.raw[0] & 0xFFFF);
      if (to >= 0 && to < size) i.target = code->index_of[static_cast<size_t>(to) / 4];
    }
  return code;
}

}  // namespace

// Decoding is most of the time of a load, and a test of faults loads the same code objects a hundred times.
std::shared_ptr<const Code> decode(const std::string& arch, const u8* text, u32 size) {
  struct Known {
    std::string arch, text;
    std::shared_ptr<const Code> code;
  };
  constexpr size_t kMost = 8;
  static std::mutex mutex;
  static std::deque<Known> known;
  const std::string bytes(reinterpret_cast<const char*>(text), size);
  std::lock_guard<std::mutex> lock(mutex);
  for (const Known& k : known)
    if (k.arch == arch && k.text == bytes) return k.code;
  known.push_back({arch, bytes, decode_fresh(arch, text, size)});
  if (known.size() > kMost) known.pop_front();
  return known.back().code;
}

}  // namespace hipsim
