// Waves: scalar register access, waits, barriers, LDS bookkeeping, the loop over waves and workgroups.
#include <algorithm>
#include <atomic>
#include <cstdarg>
#include <memory>
#include <mutex>
#include <random>
#include <thread>

#include "memory.h"
#include "sim.h"

namespace hipsim {

std::string format(const char* f, ...) {
  char buffer[1024];
  va_list args;
  va_start(args, f);
  vsnprintf(buffer, sizeof buffer, f, args);
  va_end(args);
  return buffer;
}

void fail(const char* f, ...) {
  char buffer[1024];
  va_list args;
  va_start(args, f);
  vsnprintf(buffer, sizeof buffer, f, args);
  va_end(args);
  throw SimError(buffer);
}

void PendingQueue::grow() {
  std::vector<Pending> next(items_.size() * 2);
  for (int k = 0; k < count_; k++) next[static_cast<size_t>(k)] = at(k);
  items_.swap(next);
  head_ = 0;
}

void PendingQueue::erase(int k) {
  for (; k > 0; k--) at(k) = at(k - 1);
  pop();
}

u32 Wave::get_s(int r) const {
  if (spend[r >> 6] >> (r & 63) & 1) fail("s%d is read although the s_load that writes it was not waited for", r);
  return s[r];
}

void Wave::set_s(int r, u32 value, u32 poison) {
  if (spend[r >> 6] >> (r & 63) & 1) fail("s%d is overwritten although an s_load still writes it", r);
  if (r >= kExec && poison) fail("EXEC is computed from a register that nobody wrote");
  s[r] = value, sp[r] = poison;
}

void Wave::pending_fault(int r, u64 lanes, bool write) const {
  std::string by;
  for (const PendingQueue* q : {&vm, &lgkm})
    for (int k = 0; k < q->size(); k++) {
      Pending& p = const_cast<PendingQueue*>(q)->at(k);
      if (r >= p.reg && r < p.reg + p.dwords && p.type != Pending::kScalar) by = format(" at pc 0x%x", p.pc);
    }
  fail("lane %d: %c%d is %s although the load%s that writes it was not waited for", __builtin_ctzll(lanes),
       r >= kAgpr0 ? 'a' : 'v', r % kAgpr0, write ? "overwritten" : "read", by.c_str());
}

// The data of an outstanding operation arrives.
void Wave::finish(Pending& p, PendingQueue& queue, int index) {
  switch (p.type) {
    case Pending::kScalar:
      for (int k = 0; k < p.dwords; k++) {
        int r = p.reg + k;
        spend[r >> 6] &= ~(1ull << (r & 63));
        set_s(r, p.scalar()[k], p.scalar_poison[k]);
      }
      break;
    case Pending::kLoad:
    case Pending::kLdsRead:
      for (int k = 0; k < p.dwords; k++) {
        u32* d = v[p.reg + k];
        const u32* from = p.lane(k);
        u32 keep = p.half_lo ? 0xFFFF0000 : p.half_hi ? 0xFFFF : 0;
        for (int l = 0; l < kLanes; l++)
          if (p.exec >> l & 1) d[l] = (d[l] & keep) | (from[l] & ~keep);
        for (int b = 0; b < 4; b++) {
          if (keep >> (8 * b) & 0xFF) continue;
          vp[p.reg + k].b[b] = (vp[p.reg + k].b[b] & ~p.exec) | (p.poison[k].b[b] & p.exec);
        }
        pend[p.reg + k] &= ~p.exec;
      }
      for (int n = 0; n < queue.size(); n++) {  // a later load may write the same register
        Pending& q = queue.at(n);
        if (n == index || (q.type != Pending::kLoad && q.type != Pending::kLdsRead)) continue;
        for (int k = 0; k < q.dwords; k++)
          if (q.reg + k >= p.reg && q.reg + k < p.reg + p.dwords) pend[q.reg + k] |= q.exec;
      }
      break;
    case Pending::kDirectLds:
      for (int l = 0; l < kLanes; l++) {
        if (!(p.exec >> l & 1)) continue;
        u32 at = p.address[l];
        u8 source[16];
        for (int k = 0; k < p.bytes / 4; k++) memcpy(source + 4 * k, &p.lane(k)[l], 4);
        memcpy(&wg->lds[at], source, p.bytes);
        for (u32 b = 0; b < p.bytes; b++) wg->lds_state[at + b] = p.poison[b / 4].b[b % 4] >> l & 1;
        wg->lds_mark(id, at, p.bytes, true);
      }
      break;
    default:
      break;
  }
}

// vmcnt counts in order. LDS operations return in order too, but s_loads return in any order, so an LDS operation is
// certain when more LDS operations from it on were issued than may be outstanding, and an s_load only at zero.
void Wave::wait(int vmcnt, int lgkmcnt) {
  while (vm.size() > vmcnt) {
    Pending& p = vm.at(0);
    finish(p, vm, 0);
    vm.pop();
  }
  int lds_after = 0;
  for (int k = 0; k < lgkm.size(); k++) lds_after += lgkm.at(k).type != Pending::kScalar;
  for (int k = 0; k < lgkm.size();) {
    Pending& p = lgkm.at(k);
    bool scalar = p.type == Pending::kScalar;
    bool certain = scalar ? lgkmcnt == 0 : lds_after > lgkmcnt;
    lds_after -= !scalar;
    if (!certain) {
      k++;
      continue;
    }
    finish(p, lgkm, k);
    lgkm.erase(k);
  }
}

void Workgroup::lds_touch(int wave, u32 address, u32 bytes, bool write, int lane) {
  if (static_cast<u64>(address) + bytes > lds_size)
    fail("lane %d: LDS %s of %u bytes at 0x%x is out of bounds (the workgroup has %u bytes)", lane,
         write ? "write" : "read", bytes, address, lds_size);
  u64 tag = static_cast<u64>(epoch) << 32, me_r = 1ull << wave, me_w = 1ull << (16 + wave);
  u64 conflict = write ? ~(me_r | me_w) & 0xFFFFFFFF : ~me_w & 0xFFFF0000;
  u64 bad = 0, arriving = 0;
  u64* cell = &lds_race[address];
  u64 mark = write ? me_w : me_r;
  for (u32 b = 0; b < bytes; b++) {
    u64 c = cell[b] >> 32 == epoch ? cell[b] : tag;
    bad |= c & conflict;
    cell[b] = c | mark;
    arriving |= lds_state[address + b] & 2;
  }
  if (arriving)
    fail("lane %d: LDS %s at 0x%x, but a direct-to-LDS load to it was not waited for", lane, write ? "write" : "read",
         address);
  if (bad && waves.size() > 1) {
    int other = __builtin_ctzll(bad) % 16;
    fail("lane %d: LDS race at 0x%x: wave %d %s what wave %d %s without a barrier in between (or before its wait)",
         lane, address, wave, write ? "writes" : "reads", other, bad >> 16 ? "wrote" : "read");
  }
}

void Workgroup::lds_mark(int wave, u32 address, u32 bytes, bool write) {
  u64 tag = static_cast<u64>(epoch) << 32;
  for (u32 b = 0; b < bytes; b++) {
    u64& c = lds_race[address + b];
    c = (c >> 32 == epoch ? c : tag) | 1ull << (wave + (write ? 16 : 0));
  }
}

void Wave::reset(int vgprs, int agprs) {
  auto poison = [&](int first, int count) {
    for (int r = first; r < first + count; r++) {
      for (u32& x : v[r]) x = kPoisonValue;
      vp[r] = Poison::all(kAllLanes);
    }
  };
  poison(0, vgprs);
  poison(kAgpr0, agprs);
  memset(pend, 0, sizeof pend);
  memset(spend, 0, sizeof spend);
  for (int r = 0; r < 128; r++) s[r] = kPoisonValue, sp[r] = ~0u;
  scc = false, scc_poison = true;
  steps = 0;
  done = at_barrier = yield = false;
  vm.clear(), lgkm.clear();
}

void Wave::run() {
  const u64 limit = config().max_steps;
  yield = false;
  while (!done && !at_barrier && !yield) {
    if (counts) counts[ip - code]++;
    const Inst& i = *ip++;
    if (++steps > limit)
      fail("%llu instructions without an end: endless loop?", static_cast<unsigned long long>(limit));
    i.fn(*this, i);
  }
}

namespace {

// Initial registers: AMDGPUUsage, "Initial Kernel Execution State"; gfx942 and gfx950 have packed work-item ids and
// architected flat scratch.
void start_wave(Wave& w, const Launch& launch, u32 first_thread, u32 threads) {
  const Kernel& k = *launch.kernel;
  int granulated = static_cast<int>(((k.rsrc1 & 63) + 1) * 8), agpr_offset = static_cast<int>(((k.rsrc3 & 63) + 1) * 4);
  w.reset(std::min(256, granulated), std::max(0, std::min(256, granulated - agpr_offset)));
  int r = 0;
  auto put = [&](u32 value) { w.s[r] = value, w.sp[r] = 0, r++; };
  auto put64 = [&](u64 value) { put(static_cast<u32>(value)), put(static_cast<u32>(value >> 32)); };
  if (k.properties & 1) r += 4;                // private segment buffer
  if (k.properties & 2) put64(launch.packet);  // dispatch packet
  if (k.properties & 4) r += 2;                // queue
  if (k.properties & 8) put64(launch.kernarg);
  if (k.properties & 16) put64(1);  // dispatch id
  if (k.properties & 32) r += 2;    // flat scratch
  if (k.properties & 64) put(k.private_size);
  u32 preload = k.preload & 127, from = k.preload >> 7;
  for (u32 n = 0; n < preload; n++) {
    u32 value = 0;
    u64 at = launch.kernarg + 4 * (from + n);
    memcpy(&value, backing(at), 4);
    u32 missing = unwritten(at, 4);
    put(value);
    for (u32 b = 0; b < 4; b++)
      if (missing >> b & 1) w.sp[r - 1] |= 0xFFu << (8 * b);
  }
  if (k.rsrc2 >> 7 & 1) put(w.wg->id[0]);
  if (k.rsrc2 >> 8 & 1) put(w.wg->id[1]);
  if (k.rsrc2 >> 9 & 1) put(w.wg->id[2]);
  if (k.rsrc2 >> 10 & 1) put(0);
  w.mode = (k.rsrc1 >> 12 & 255) | (k.rsrc1 >> 23 & 1) << 9;  // rounding and denormals; IEEE
  u64 active = 0;
  for (u32 l = 0; l < kLanes; l++) {
    u32 t = first_thread + l;
    if (t >= threads) continue;
    active |= 1ull << l;
    u32 x = t % launch.block[0], y = t / launch.block[0] % launch.block[1], z = t / launch.block[0] / launch.block[1];
    w.v[0][l] = x | y << 10 | z << 20;
  }
  for (u64& b : w.vp[0].b) b = ~active;
  w.s[kExec] = static_cast<u32>(active), w.s[kExec + 1] = static_cast<u32>(active >> 32);
  w.sp[kExec] = w.sp[kExec + 1] = 0;
  w.code = k.module->code->records.data();
  w.ip = w.code + k.module->code->index_of[k.entry / 4];
}

void run_workgroup(Workgroup& g, std::mt19937_64& random) {
  const Launch& launch = *g.launch;
  u32 threads = launch.block[0] * launch.block[1] * launch.block[2];
  std::fill(g.lds.begin(), g.lds.end(), 0xFF);
  std::fill(g.lds_state.begin(), g.lds_state.end(), 1);
  g.epoch = g.epoch + 1 ? g.epoch + 1 : 1;
  for (size_t n = 0; n < g.waves.size(); n++) start_wave(*g.waves[n], launch, static_cast<u32>(n) * kLanes, threads);
  std::vector<Wave*> ready = g.waves;
  u64 idle = 0;
  while (true) {
    std::shuffle(ready.begin(), ready.end(), random);
    for (Wave* w : ready) {
      try {
        w->run();
      } catch (SimError& e) {
        const Inst& i = w->ip[-1];
        throw SimError(format("kernel '%s' (%s, device %d), workgroup (%u,%u,%u), wave %d, pc 0x%x, \"%s\":\n  ",
                              launch.kernel->name.c_str(), launch.kernel->module->arch.c_str(), launch.device, g.id[0],
                              g.id[1], g.id[2], w->id, i.pc, i.text) +
                           e.what(),
                       e.error);
      }
    }
    ready.clear();
    size_t waiting = 0, finished = 0;
    for (Wave* w : g.waves) {
      waiting += w->at_barrier, finished += w->done;
      if (!w->done && !w->at_barrier) ready.push_back(w);
    }
    if (!ready.empty()) {
      if (++idle > 1000000) fail("kernel '%s': waves wait for each other for ever", launch.kernel->name.c_str());
      continue;
    }
    if (finished == g.waves.size()) return;
    g.epoch++;  // barrier: every wave arrived or ended
    for (Wave* w : g.waves) {
      if (!w->at_barrier) continue;
      w->at_barrier = false;
      ready.push_back(w);
      // LDS accesses that nobody waited for may still happen behind the barrier.
      for (int k = 0; k < w->lgkm.size(); k++) {
        Pending& p = w->lgkm.at(k);
        bool write = p.type == Pending::kLdsWrite;
        if (!write && (p.type != Pending::kLdsRead || !config().strict_war)) continue;
        for (int l = 0; l < kLanes; l++)
          if (p.exec >> l & 1) {
            g.lds_mark(w->id, p.address[l], p.bytes, write);
            if (p.two) g.lds_mark(w->id, p.address2[l], p.bytes, write);
          }
      }
    }
  }
}

void add_counts(const Code& code, const std::vector<u64>& counts) {
  std::lock_guard<std::mutex> lock(code.mutex);
  code.counts.resize(std::max(code.counts.size(), counts.size()));
  for (size_t n = 0; n < counts.size(); n++) code.counts[n] += counts[n];
}

}  // namespace

void run_launch(Launch& launch) {
  const Kernel& k = *launch.kernel;
  u32 threads = launch.block[0] * launch.block[1] * launch.block[2];
  u64 groups = static_cast<u64>(launch.grid[0]) * launch.grid[1] * launch.grid[2];
  if ((k.rsrc1 >> 18 & 3) != 3 || (k.rsrc1 >> 16 & 3) != 3)
    fail("kernel '%s': flushes denormals; only the default float mode is modelled", k.name.c_str());
  if ((k.rsrc1 >> 12 & 15) != 0) fail("kernel '%s': only round-to-nearest is modelled", k.name.c_str());
  std::vector<u64> order(groups);
  for (u64 n = 0; n < groups; n++) order[n] = n;
  std::mt19937_64 shuffle(config().seed);
  std::shuffle(order.begin(), order.end(), shuffle);

  std::atomic<u64> next{0};
  std::mutex mutex;
  std::unique_ptr<SimError> error;
  auto work = [&](int) {
    Workgroup g;
    g.launch = &launch;
    std::vector<u64> counts(config().counts ? k.module->code->records.size() : 0);
    g.lds_size = k.lds_size + launch.dynamic_lds;
    g.lds.resize(g.lds_size), g.lds_state.resize(g.lds_size), g.lds_race.resize(g.lds_size);
    std::vector<std::unique_ptr<Wave>> waves;
    for (u32 n = 0; n < (threads + kLanes - 1) / kLanes; n++) {
      waves.push_back(std::make_unique<Wave>());
      waves.back()->wg = &g, waves.back()->id = static_cast<int>(n);
      waves.back()->counts = counts.empty() ? nullptr : counts.data();
      g.waves.push_back(waves.back().get());
    }
    try {
      for (u64 n; (n = next++) < groups;) {
        u64 id = order[n];
        g.id[0] = static_cast<u32>(id % launch.grid[0]);
        g.id[1] = static_cast<u32>(id / launch.grid[0] % launch.grid[1]);
        g.id[2] = static_cast<u32>(id / launch.grid[0] / launch.grid[1]);
        std::mt19937_64 random(config().seed * 0x9E3779B97F4A7C15ull + id);
        run_workgroup(g, random);
      }
    } catch (SimError& e) {
      std::lock_guard<std::mutex> lock(mutex);
      if (!error) error = std::make_unique<SimError>(e);
      next = groups;
    }
    add_counts(*k.module->code, counts);
  };
  int count = static_cast<int>(std::min<u64>(groups, static_cast<u64>(std::max(1, config().threads))));
  std::vector<std::thread> threads_running;
  for (int n = 1; n < count; n++) threads_running.emplace_back(work, n);
  work(0);
  for (auto& t : threads_running) t.join();
  if (error) throw SimError(*error);
}

}  // namespace hipsim
