#include "emulator.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <vector>

#include "fiber.h"

#if defined(EMULATOR_SWITCH)
asm(R"(
.text
.type emulator_switch, @function
.globl emulator_switch
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch, . - emulator_switch
)");
#endif

namespace emulator {
namespace {

constexpr unsigned kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

enum class State { kReady, kAtBarrier, kAtShuffle, kDone };

struct Thread {
  Fiber fiber;
  State state = State::kReady;
  int line = 0;  // where it waits
};

// What the lanes of a warp give: two sets, so that the next shuffle may begin while lanes still
// read this one's.
struct Warp {
  unsigned char given[2][kWarp][16];
  unsigned arrived = 0;
  int line = 0;
};

struct Block {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<int> turns;  // shuffles a thread took part in, modulo 2
  std::unique_ptr<unsigned char[]> shared;
  unsigned size = 0, current = 0;  // threads of the block; the one that runs
  const std::function<void()>* body = nullptr;
};

Block block;
std::mutex mutex;  // one launch at a time, whichever thread makes it
std::map<const void*, int> shared_allowed;

void set_thread(unsigned t) {
  block.current = t;
  threadIdx.x = t % blockDim.x;
  threadIdx.y = t / blockDim.x % blockDim.y;
  threadIdx.z = t / blockDim.x / blockDim.y;
}

void wait(State state, int line) {
  Thread& t = block.threads[block.current];
  t.state = state;
  t.line = line;
  t.fiber.leave(state == State::kDone);
}

void thread_main() {
  (*block.body)();
  wait(State::kDone, 0);
}

void start_block(unsigned size, size_t shared, const std::function<void()>& body) {
  block.size = size;
  block.body = &body;
  if (block.threads.size() < size) block.threads.resize(size);
  block.warps.assign((size + kWarp - 1) / kWarp, Warp());
  block.turns.assign(size, 0);
  // new[] aligns to 16 bytes, as a GPU does.
  block.shared.reset(new unsigned char[shared]);
  std::memset(block.shared.get(), settings.order == Order::kForward ? 0xFF : 0x7F, shared);
  for (unsigned t = 0; t < size; ++t) {
    block.threads[t].state = State::kReady;
    block.threads[t].fiber.start(&thread_main);
  }
}

std::string describe(unsigned t) {
  const Thread& f = block.threads[t];
  const std::string where = " at line " + std::to_string(f.line);
  std::string text = "thread " + std::to_string(t) + " of block " + std::to_string(blockIdx.x);
  switch (f.state) {
    case State::kAtBarrier:
      return text + " waits at the barrier" + where;
    case State::kAtShuffle:
      return text + " waits at the shuffle" + where;
    case State::kDone:
      return text + " has ended";
    default:
      return text + " is ready";
  }
}

// Releases the barrier if every thread is there; throws if that can no longer be.
void release_barrier() {
  const Thread& first = block.threads[0];
  for (unsigned t = 1; t < block.size; ++t) {
    const Thread& f = block.threads[t];
    if (f.state != first.state || f.line != first.line) {
      throw Error(describe(0) + ", but " + describe(t));
    }
  }
  if (first.state != State::kAtBarrier) throw Error(describe(0) + " for ever");
  ++counts.barriers;
  for (unsigned t = 0; t < block.size; ++t) block.threads[t].state = State::kReady;
}

std::vector<unsigned> in_order(unsigned n, std::mt19937_64& random) {
  std::vector<unsigned> v(n);
  for (unsigned i = 0; i < n; ++i) v[i] = i;
  if (settings.order == Order::kBackward) std::reverse(v.begin(), v.end());
  if (settings.order == Order::kShuffled) std::shuffle(v.begin(), v.end(), random);
  return v;
}

// One lane after another until all have ended or wait at a barrier; returns how many have ended.
unsigned run_warp(unsigned warp, std::mt19937_64& random) {
  const unsigned first = warp * kWarp, lanes = std::min(kWarp, block.size - first);
  const std::vector<unsigned> order = in_order(lanes, random);
  for (bool progress = true; progress;) {
    progress = false;
    for (const unsigned i : order) {
      if (block.threads[first + i].state != State::kReady) continue;
      set_thread(first + i);
      block.threads[first + i].fiber.enter();
      progress = true;
    }
  }
  unsigned done = 0;
  for (unsigned i = 0; i < lanes; ++i) done += block.threads[first + i].state == State::kDone;
  return done;
}

// A warp goes on as far as it can before the next one begins: no two are closer than the barriers
// make them.
void run_block(std::mt19937_64& random) {
  const std::vector<unsigned> order = in_order(static_cast<unsigned>(block.warps.size()), random);
  for (;;) {
    unsigned done = 0;
    for (const unsigned warp : order) done += run_warp(warp, random);
    if (done == block.size) return;
    release_barrier();
  }
}

}  // namespace

unsigned char* shared_bytes() { return block.shared.get(); }

int lane() { return static_cast<int>(block.current % kWarp); }

void barrier(int line) { wait(State::kAtBarrier, line); }

void exchange(unsigned mask, int from, const void* give, void* take, size_t bytes, int line) {
  const unsigned me = block.current;
  const unsigned own = me % kWarp;
  Warp& warp = block.warps[me / kWarp];
  const int turn = block.turns[me];
  block.turns[me] ^= 1;
  std::memcpy(warp.given[turn][own], give, bytes);
  if (warp.arrived == 0) warp.line = line;
  warp.arrived |= 1u << own;
  if (mask == kAllLanes && warp.line == line && warp.arrived == mask) {
    // The last to come: the others may go on, and so may this.
    for (unsigned i = 0; i < kWarp; ++i) block.threads[me - own + i].state = State::kReady;
    warp.arrived = 0;
    ++counts.shuffles;
  } else {
    wait(State::kAtShuffle, line);  // for ever, if it does not fit: run_block sees it
  }
  std::memcpy(take, warp.given[turn][static_cast<unsigned>(from) % kWarp], bytes);
}

cudaError_t allow_shared(const void* kernel, int bytes) {
  if (bytes > settings.shared_bytes) return cudaErrorInvalidValue;
  const std::lock_guard<std::mutex> lock(mutex);
  shared_allowed[kernel] = bytes;
  return cudaSuccess;
}

cudaError_t run(const cudaLaunchConfig_t& config, const void* kernel,
                const std::function<void()>& thread) {
  const std::lock_guard<std::mutex> lock(mutex);
  const dim3 grid = config.gridDim, size = config.blockDim;
  const uint64_t threads = uint64_t{size.x} * size.y * size.z;
  const auto allowed = shared_allowed.find(kernel);
  const size_t most = static_cast<size_t>(
      allowed == shared_allowed.end() ? 48 << 10 : std::max(allowed->second, 48 << 10));
  if (threads == 0 || threads > 1024 || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
      grid.x > static_cast<unsigned>(settings.max_grid) || grid.y > 65535 || grid.z > 65535 ||
      config.dynamicSmemBytes > most) {
    return cudaErrorInvalidConfiguration;
  }
  ++counts.launches;
  counts.shared_bytes = config.dynamicSmemBytes;
  counts.threads = static_cast<unsigned>(threads);
  gridDim = grid;
  blockDim = size;
  std::mt19937_64 random(settings.seed);
  for (const unsigned b : in_order(grid.x * grid.y * grid.z, random)) {
    ++counts.blocks;
    blockIdx = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
    start_block(static_cast<unsigned>(threads), config.dynamicSmemBytes, thread);
    run_block(random);
  }
  return cudaSuccess;
}

}  // namespace emulator
