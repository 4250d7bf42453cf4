// Switching between stacks, with AddressSanitizer told of it.
#pragma once

#include <cstddef>
#include <memory>

#if defined(__SANITIZE_ADDRESS__)
#define EMULATOR_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMULATOR_ASAN 1
#endif
#endif
#if defined(EMULATOR_ASAN)
#include <sanitizer/common_interface_defs.h>
#endif

// ucontext saves the signal mask too, two system calls a switch; x86-64 does without.
#if defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)
#define EMULATOR_SWITCH 1
// Saves what a function must preserve and the stack pointer in *from; goes on from `to`.
extern "C" void emulator_switch(void** from, void* to);
#else
#include <ucontext.h>
#endif

namespace emulator {

class Fiber {
 public:
  static constexpr size_t kStack = 128 << 10;

  // Begins with entry() at the next enter(). entry must not return.
  void start(void (*entry)()) {
    if (stack_ == nullptr) stack_.reset(new unsigned char[kStack]);
    fake_stack_ = nullptr;
    entry_ = entry;
#if defined(EMULATOR_SWITCH)
    // What emulator_switch pops: six registers and where to go on, at a call's alignment.
    auto top = reinterpret_cast<size_t>(stack_.get() + kStack) / 16 * 16;
    void** sp = reinterpret_cast<void**>(top) - 2;
    *sp = reinterpret_cast<void*>(&Fiber::begin);
    sp -= 6;
    for (int i = 0; i < 6; ++i) sp[i] = nullptr;
    context_ = sp;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_.get();
    context_.uc_stack.ss_size = kStack;
    context_.uc_link = nullptr;
    makecontext(&context_, &Fiber::begin, 0);
#endif
  }

  // From the host's stack to this; returns when the fiber leaves.
  void enter() {
    current_ = this;
#if defined(EMULATOR_ASAN)
    __sanitizer_start_switch_fiber(&host_fake_stack_, stack_.get(), kStack);
#endif
    switch_to(host_, context_);
#if defined(EMULATOR_ASAN)
    __sanitizer_finish_switch_fiber(host_fake_stack_, nullptr, nullptr);
#endif
  }

  // Back to the host's stack; returns at the next enter(), unless `last`.
  void leave([[maybe_unused]] bool last) {
#if defined(EMULATOR_ASAN)
    __sanitizer_start_switch_fiber(last ? nullptr : &fake_stack_, host_bottom_, host_size_);
#endif
    switch_to(context_, host_);
#if defined(EMULATOR_ASAN)
    __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
#endif
  }

 private:
#if defined(EMULATOR_SWITCH)
  using Context = void*;
  static void switch_to(Context& from, Context& to) { emulator_switch(&from, to); }
#else
  using Context = ucontext_t;
  static void switch_to(Context& from, Context& to) { swapcontext(&from, &to); }
#endif

  static void begin() {
#if defined(EMULATOR_ASAN)
    __sanitizer_finish_switch_fiber(nullptr, &host_bottom_, &host_size_);
#endif
    current_->entry_();
  }

  Context context_{};
  std::unique_ptr<unsigned char[]> stack_;
  void* fake_stack_ = nullptr;
  void (*entry_)() = nullptr;

  static inline Fiber* current_ = nullptr;
  static inline Context host_{};
  static inline void* host_fake_stack_ = nullptr;
  static inline const void* host_bottom_ = nullptr;
  static inline size_t host_size_ = 0;
};

}  // namespace emulator
