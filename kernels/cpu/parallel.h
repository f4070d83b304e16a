// Worker threads of the CPU backend.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace minipuzzle::cpu {
inline namespace MINIPUZZLE_ISA {

// A fixed set of workers. Tasks are handed out as workers come free, so which worker runs a task is not
// repeatable: a task must write only what belongs to it, and its result must depend on its index alone.
class ThreadPool {
  public:
    explicit ThreadPool(int threads);  // 0: every core this process may use
    ~ThreadPool();
    int threads() const;

    // body(task, worker) for every task in [0, tasks); returns when all are done. The first exception is
    // rethrown.
    void parallel_for(int64_t tasks, const std::function<void(int64_t task, int worker)>& body);

    // Memory of one worker, grown on demand and kept, so that no step after the first allocates.
    // Uninitialised, 64-byte aligned. A task gets one block: carve it up.
    std::byte* scratch(int worker, int64_t bytes);
    // One more such block, for what all tasks of an operation share. Call it outside of parallel_for.
    std::byte* shared_scratch(int64_t bytes);

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace MINIPUZZLE_ISA
}  // namespace minipuzzle::cpu
