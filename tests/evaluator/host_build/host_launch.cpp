// Runs kernels on the host: `host_launch` takes what cuLaunchKernel takes. KERNELS, a macro, lists X(name) for each
// kernel of SOURCE, the file with the kernels.
#include <setjmp.h>
#include <string.h>
#include <time.h>
#include <ucontext.h>
#include <utility>
#include <vector>

#include SOURCE

thread_local Index3 threadIdx, blockIdx, blockDim, gridDim;
thread_local unsigned char *host_shared;

namespace {

constexpr size_t STACK = 64 * 1024;

struct Fiber {
    ucontext_t context;  // to begin with; from then on jumps, which ask nothing of the system
    jmp_buf place;
    std::vector<unsigned char> stack;
    Index3 thread;
    bool begun, done;
};

thread_local std::vector<Fiber> fibers;
thread_local jmp_buf scheduler;
thread_local int current;

struct Call {
    void (*run)(void **);
    void **arguments;
};
thread_local Call call;

template <typename... A, size_t... I>
void apply(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
    kernel(*(A *)arguments[I]...);
}

template <typename... A>
void invoke(void (*kernel)(A...), void **arguments) {
    apply(kernel, arguments, std::index_sequence_for<A...>());
}

__attribute__((noinline)) void give_way() {
    if (!_setjmp(fibers[current].place)) _longjmp(scheduler, 1);
}

__attribute__((noinline)) void resume(Fiber &fiber) {
    if (_setjmp(scheduler)) return;
    if (fiber.begun) _longjmp(fiber.place, 1);
    fiber.begun = true;
    setcontext(&fiber.context);
}

void live() {  // a fiber serves one block after another
    for (;;) {
        call.run(call.arguments);
        fibers[current].done = true;
        give_way();
    }
}

void create(Fiber &fiber) {
    fiber.stack.resize(STACK);
    fiber.begun = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = STACK;
    makecontext(&fiber.context, live, 0);
}

// One block; returns 1 where its threads did not meet at the same barriers.
int run_block(int threads, bool descending) {
    for (int t = 0; t < threads; t++) {
        Fiber &fiber = fibers[t];
        fiber.thread = {t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)};
        fiber.done = false;
    }
    int left = threads;
    while (left) {
        if (left != threads) {  // some ended where others wait: these must not be resumed
            fibers.clear();
            return 1;
        }
        for (int i = 0; i < threads; i++) {
            current = descending ? threads - 1 - i : i;
            Fiber &fiber = fibers[current];
            threadIdx = fiber.thread;
            resume(fiber);
            left -= fiber.done;
        }
    }
    return 0;
}

struct Entry {
    const char *name;
    void (*run)(void **);
};

#define X(name) {#name, [](void **arguments) { invoke(&name, arguments); }},
const Entry ENTRIES[] = {KERNELS};
#undef X

}  // namespace

void barrier() { give_way(); }

unsigned long long nanoseconds() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return 1000000000ull * now.tv_sec + now.tv_nsec;
}

// 0, or 1: no kernel of that name, 2: threads of a block disagree about a barrier, 3: wrote past its shared memory.
extern "C" int host_launch(
    const char *name, const int *grid, const int *block, size_t shared, void **arguments, int descending
) {
    call = {nullptr, arguments};
    for (const Entry &entry : ENTRIES) {
        if (!strcmp(entry.name, name)) call.run = entry.run;
    }
    if (!call.run) return 1;
    const int threads = block[0] * block[1] * block[2];
    if ((int)fibers.size() < threads) {  // contexts must not move once they have begun
        fibers = std::vector<Fiber>(threads);
        for (Fiber &fiber : fibers) create(fiber);
    }
    std::vector<unsigned char> memory(shared + 128);
    host_shared = memory.data() + (64 - (size_t)memory.data() % 64) % 64;
    blockDim = {(unsigned)block[0], (unsigned)block[1], (unsigned)block[2]};
    gridDim = {(unsigned)grid[0], (unsigned)grid[1], (unsigned)grid[2]};
    const int blocks = grid[0] * grid[1] * grid[2];
    for (int i = 0; i < blocks; i++) {
        const int b = descending ? blocks - 1 - i : i;
        blockIdx = {(unsigned)(b % grid[0]), (unsigned)(b / grid[0] % grid[1]), (unsigned)(b / (grid[0] * grid[1]))};
        memset(host_shared, 0xA5, shared + 64 - 1);  // nobody may rely on what is in it
        unsigned char *end = host_shared + shared;
        if (run_block(threads, descending)) return 2;
        for (int k = 0; k < 32; k++) {
            if (end[k] != 0xA5) return 3;
        }
    }
    return 0;
}
