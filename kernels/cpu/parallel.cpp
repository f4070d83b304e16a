#include "kernels/cpu/parallel.h"

#include <sched.h>

#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>
#include <thread>
#include <utility>

#include "kernels/check.h"

namespace minipuzzle::cpu {
inline namespace MINIPUZZLE_ISA {

namespace {

constexpr int64_t kAlignment = 64;

// The cores this process may run on (a container or taskset may allow fewer than the machine has).
int usable_cores() {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
    const unsigned cores = std::thread::hardware_concurrency();
    return cores > 0 ? static_cast<int>(cores) : 1;
}

struct FreeMemory {
    void operator()(std::byte* memory) const { std::free(memory); }
};

// Aligned memory that only grows.
class GrowingBlock {
  public:
    std::byte* at_least(int64_t bytes) {
        if (bytes > size_) {
            memory_.reset();
            size_ = 0;
            const int64_t rounded = div_up(bytes, kAlignment) * kAlignment;
            memory_.reset(static_cast<std::byte*>(std::aligned_alloc(kAlignment, rounded)));
            if (!memory_) throw std::bad_alloc();
            size_ = rounded;
        }
        return memory_.get();
    }

  private:
    std::unique_ptr<std::byte, FreeMemory> memory_;
    int64_t size_ = 0;
};

}  // namespace

struct ThreadPool::State {
    std::mutex mutex;
    std::condition_variable work_arrived, work_done;
    const std::function<void(int64_t, int)>* body = nullptr;
    int64_t tasks = 0, next = 0;
    int64_t round = 0;  // counts calls of parallel_for, so that a worker joins each one once
    int busy = 0;       // workers inside the current round
    bool closing = false;
    int64_t failed_task = -1;
    std::exception_ptr failure;
    std::vector<GrowingBlock> scratch;  // one per worker, then the shared one
    std::vector<std::thread> workers;

    // The next task, or -1 when none is left; a failure ends the round early.
    int64_t take() {
        std::lock_guard lock(mutex);
        return next < tasks && !failure ? next++ : -1;
    }

    void drain(int worker) {
        for (int64_t task = take(); task >= 0; task = take()) {
            try {
                (*body)(task, worker);
            } catch (...) {
                std::lock_guard lock(mutex);
                if (!failure || task < failed_task) {
                    failure = std::current_exception();
                    failed_task = task;
                }
            }
        }
    }

    void work(int worker) {
        int64_t seen = 0;
        std::unique_lock lock(mutex);
        while (true) {
            work_arrived.wait(lock, [&] { return closing || round != seen; });
            if (closing) return;
            seen = round;
            ++busy;
            lock.unlock();
            drain(worker);
            lock.lock();
            if (--busy == 0) work_done.notify_one();
        }
    }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
    const int count = threads > 0 ? threads : usable_cores();
    state_->scratch.resize(count + 1);
    for (int worker = 1; worker < count; ++worker) {
        state_->workers.emplace_back([state = state_.get(), worker] { state->work(worker); });
    }
}

ThreadPool::~ThreadPool() {
    {
        std::lock_guard lock(state_->mutex);
        state_->closing = true;
    }
    state_->work_arrived.notify_all();
    for (std::thread& worker : state_->workers) worker.join();
}

int ThreadPool::threads() const { return static_cast<int>(state_->workers.size()) + 1; }

void ThreadPool::parallel_for(int64_t tasks, const std::function<void(int64_t, int)>& body) {
    if (tasks <= 1 || state_->workers.empty()) {
        for (int64_t task = 0; task < tasks; ++task) body(task, 0);
        return;
    }
    State& state = *state_;
    {
        std::lock_guard lock(state.mutex);
        state.body = &body;
        state.tasks = tasks;
        state.next = 0;
        state.failure = nullptr;
        ++state.round;
    }
    state.work_arrived.notify_all();
    state.drain(0);
    std::unique_lock lock(state.mutex);
    state.work_done.wait(lock, [&] { return state.busy == 0; });
    // A worker that wakes only now finds no task left.
    state.tasks = 0;
    if (state.failure) std::rethrow_exception(std::exchange(state.failure, nullptr));
}

std::byte* ThreadPool::scratch(int worker, int64_t bytes) {
    MP_ASSERT(worker >= 0 && worker < threads());
    return state_->scratch[worker].at_least(bytes);
}

std::byte* ThreadPool::shared_scratch(int64_t bytes) { return state_->scratch.back().at_least(bytes); }

}  // namespace MINIPUZZLE_ISA
}  // namespace minipuzzle::cpu
