// Core types of the interpreter: instruction records, wave and workgroup state, poison.
//
// Model in one paragraph. A wave has 64 lanes, 256 VGPRs and 256 AGPRs (indices 256..511 here), 128 scalar slots in the
// order of the ISA's operand encoding (106/107 VCC, 124 M0, 126/127 EXEC) and SCC. Memory results are kept in queues
// and reach registers or LDS only at an s_waitcnt that guarantees them; until then the destination is "pending" and
// touching it stops the simulation. Every byte of a register, of LDS and of device memory knows whether anyone wrote
// it (poison); poison may travel through registers but not into addresses, branches, EXEC or device memory.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

namespace hipsim {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using i32 = int32_t;
using u64 = uint64_t;
using i64 = int64_t;

constexpr int kLanes = 64;
constexpr int kVcc = 106, kM0 = 124, kExec = 126;
constexpr int kAgpr0 = 256;               // index of a0 in Wave::v
constexpr u32 kPoisonValue = 0xFFFBAD5A;  // a NaN in fp32, bf16 and fp16, and no useful address
constexpr u64 kAllLanes = ~0ull;

// Stops a kernel. `error` is the hipError_t that the host will see.
struct SimError : std::runtime_error {
  explicit SimError(const std::string& what, int hip_error = 719) : std::runtime_error(what), error(hip_error) {}
  int error;
};
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string format(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Lanes whose byte 0..3 of a register holds nothing that anyone wrote.
struct alignas(32) Poison {
  u64 b[4] = {0, 0, 0, 0};
  u64 any() const { return b[0] | b[1] | b[2] | b[3]; }
  Poison& operator|=(const Poison& o) {
    for (int k = 0; k < 4; k++) b[k] |= o.b[k];
    return *this;
  }
  static Poison all(u64 lanes) { return Poison{{lanes, lanes, lanes, lanes}}; }
};

enum class Kind : u8 { kNone, kVgpr, kSgpr, kConst, kScc, kOff, kText };

struct Operand {
  Kind kind = Kind::kNone;
  u16 reg = 0;   // index into Wave::v (AGPRs from 256) or Wave::s
  u8 count = 1;  // registers
  bool neg = false, abs = false, sext = false;
  bool is_float = false;  // literal written with a point: its bits depend on the operand's type
  double fval = 0;
  u64 bits = 0;  // constant, resolved for the opcode's operand type
};

struct Wave;
struct Inst;
using ExecFn = void (*)(Wave&, const Inst&);

// How literals of an opcode are read (32-bit pattern, half, 64-bit integer, double).
enum class Lit : u8 { kB32, kF16, kB64, kF64 };

struct OpEntry {
  const char* name;
  ExecFn fn;
  Lit lit = Lit::kB32;
  u32 arg = 0;  // free for the unit: element size, register count, format...
};

struct Inst {
  ExecFn fn = nullptr;
  const OpEntry* entry = nullptr;
  Operand op[7];
  u8 ops = 0;
  u8 size = 4;
  bool dpp = false, sdwa = false, clamp = false, lds = false, offen = false, idxen = false, returns = false;
  u8 omod = 0;  // 1: x2, 2: x4, 3: /2
  u8 op_sel = 0, op_sel_hi = 0, neg_lo = 0, neg_hi = 0;
  u8 cbsz = 0, blgp = 0, abid = 0, segment = 0;
  u8 row_mask = 15, bank_mask = 15, bound_ctrl = 0;
  u8 dst_sel = 6, dst_unused = 0, src0_sel = 6, src1_sel = 6;
  u16 dpp_ctrl = 0;
  i32 offset = 0;
  u32 imm = 0;  // bitop3 table, simm16
  u32 raw[5] = {0, 0, 0, 0, 0};
  u32 pc = 0;             // byte offset in the code object's text
  i32 target = -1;        // branch: index of the target record
  const char* text = "";  // owned by the module
};

// A memory operation whose completion the wave has not yet waited for.
struct Pending {
  enum Type : u8 { kLoad, kStore, kDirectLds, kLdsRead, kLdsWrite, kScalar } type = kLoad;
  u8 dwords = 0;
  u8 bytes = 0;                           // per lane, for LDS marks and direct loads
  bool half_lo = false, half_hi = false;  // d16 destinations keep the other half
  bool flat = false;                      // also counted by the other counter
  u16 reg = 0;
  u32 pc = 0;
  u64 exec = 0;
  u64 serial = 0;
  Poison poison[4];
  u32 scalar_poison[16];
  u32 address[kLanes];   // LDS byte address per lane
  u32 address2[kLanes];  // second address of read2/write2
  bool two = false;
  u32 data[16][kLanes / 4];  // [4][64] for vectors, flat [16] for scalars: see lane() and scalar()
  u32* lane(int dword) { return &data[0][0] + dword * kLanes; }
  u32* scalar() { return &data[0][0]; }
};

// First in, first out, without freeing the records.
class PendingQueue {
 public:
  int size() const { return count_; }
  Pending& at(int k) { return items_[(head_ + k) % items_.size()]; }
  Pending& push() {
    if (count_ == static_cast<int>(items_.size())) grow();
    Pending& p = items_[(head_ + count_++) % items_.size()];
    p.two = p.half_lo = p.half_hi = p.flat = false;
    p.dwords = 0;
    p.serial = ++serial_;
    return p;
  }
  void pop() { head_ = (head_ + 1) % static_cast<int>(items_.size()), count_--; }
  void erase(int k);  // keeps the order
  void clear() { head_ = count_ = 0; }

 private:
  void grow();
  std::vector<Pending> items_ = std::vector<Pending>(8);
  int head_ = 0, count_ = 0;
  u64 serial_ = 0;
};

struct Workgroup;
struct Launch;

struct Wave {
  alignas(64) u32 v[512][kLanes];
  Poison vp[512];
  u64 pend[512];  // lanes that an outstanding vector load or LDS read will write
  alignas(8) u32 s[128];
  u32 sp[128];   // poisoned bits
  u64 spend[2];  // scalar registers that an outstanding s_load will write
  bool scc = false, scc_poison = true;
  u32 mode = 0;                                // the MODE register
  bool ieee() const { return mode >> 9 & 1; }  // a signalling NaN is quieted, not passed over
  const Inst* code = nullptr;                  // first record of the module
  const Inst* ip = nullptr;
  Workgroup* wg = nullptr;
  int id = 0;
  u64 steps = 0;
  u64* counts = nullptr;  // by record of `code`, or null
  bool done = false, at_barrier = false, yield = false;
  PendingQueue vm, lgkm;

  u64 exec() const {
    u64 e;
    memcpy(&e, &s[kExec], 8);
    return e;
  }
  u64 s64(int r) const { return s[r] | static_cast<u64>(s[r + 1]) << 32; }
  u64 sp64(int r) const { return sp[r] | static_cast<u64>(sp[r + 1]) << 32; }

  // Register access with the pending checks. set_s refuses a poisoned EXEC.
  u32 get_s(int r) const;
  void set_s(int r, u32 value, u32 poison);
  void check_v(int r, u64 lanes) const {
    if (pend[r] & lanes) pending_fault(r, pend[r] & lanes, false);
  }
  void check_v_write(int r, u64 lanes) const {
    if (pend[r] & lanes) pending_fault(r, pend[r] & lanes, true);
  }
  [[noreturn]] void pending_fault(int r, u64 lanes, bool write) const;

  void wait(int vmcnt, int lgkmcnt);
  void reset(int vgprs, int agpr_base_count);
  void run();  // until barrier, end or yield

 private:
  void finish(Pending& p, PendingQueue& queue, int index);
};

struct Workgroup {
  std::vector<Wave*> waves;
  std::vector<u8> lds;        // data
  std::vector<u8> lds_state;  // per byte: bit 0 = never written, bit 1 = a direct load is on its way
  std::vector<u64> lds_race;  // per byte: epoch << 32 | writers << 16 | readers
  u32 epoch = 1;
  u32 lds_size = 0;
  u32 id[3] = {0, 0, 0};
  Launch* launch = nullptr;

  // LDS access by `wave`: bounds, direct loads on their way, races. `wave` < 0 marks without checking.
  void lds_touch(int wave, u32 address, u32 bytes, bool write, int lane);
  void lds_mark(int wave, u32 address, u32 bytes, bool write);
};

// One kernel of a loaded module.
struct KernelArg {
  u32 offset = 0, size = 0;
  std::string kind;
};
struct Module;
struct Kernel {
  std::string name;
  Module* module = nullptr;
  u32 kernarg_size = 0, lds_size = 0, private_size = 0, vgprs = 0, agprs = 0, sgprs = 0, max_threads = 1024;
  u32 required[3] = {0, 0, 0};
  u32 rsrc1 = 0, rsrc2 = 0, rsrc3 = 0, properties = 0, preload = 0;
  u32 entry = 0;  // byte offset in text, where waves begin
  u32 end = 0;    // byte offset behind the last instruction
  std::vector<KernelArg> args;
};

// The decoded text of a code object, shared by modules with the same text.
struct Code {
  std::vector<Inst> records;
  std::deque<std::string> texts;
  std::vector<i32> index_of;  // text offset / 4 -> record, or -1
  mutable std::mutex mutex;
  mutable std::vector<u64> counts;  // by record: how often waves executed it; empty unless Config::counts
};

struct Module {
  std::string arch;
  int device = 0;
  u64 image = 0, text_base = 0;  // device addresses
  u32 text_size = 0;
  std::shared_ptr<const Code> code;
  std::vector<Kernel*> kernels;
  ~Module();
};

struct Launch {
  const Kernel* kernel = nullptr;
  int device = 0;
  u32 grid[3] = {1, 1, 1}, block[3] = {1, 1, 1}, dynamic_lds = 0;
  u64 kernarg = 0;  // addresses in the host's arena
  u64 packet = 0;   // hsa_kernel_dispatch_packet_t
};

struct Config {
  std::vector<std::string> devices;
  u64 memory = 16ull << 30, seed = 1, max_steps = 200000000;
  int threads = 1;
  bool abort_on_fault = false, strict_war = true, counts = false;
  long lost_after = -1;
};
Config& config();

// module.cc, disasm.cc, wave.cc, opcodes.cc
Module* load_module(const void* image, size_t size, int device, const std::string& arch);
std::shared_ptr<const Code> decode(const std::string& arch, const u8* text, u32 size);
const OpEntry* find_op(const std::string& name);
int op_count();
void run_launch(Launch& launch);  // throws SimError

}  // namespace hipsim
