// One operation at one shape, ready to be run, timed and checked.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cli/bench/memory.h"
#include "cli/bench/twin.h"
#include "kernels/costs.h"

namespace minipuzzle::cli::bench {

// What one launch costs and how much memory it works on.
struct Needs {
    Cost cost;
    int64_t bytes = 0, scratch = 0;
};

class Operation {
  public:
    Operation(std::string operation, std::string shape)
        : operation_(std::move(operation)), shape_(std::move(shape)) {}
    virtual ~Operation() = default;

    const std::string& operation() const { return operation_; }
    const std::string& shape() const { return shape_; }
    // What --match is held against: "conv 8B B4 T8192".
    std::string name() const { return operation_ + " " + shape_; }

    virtual Needs needs(Backend& backend) const = 0;
    // Adds one set of inputs and outputs.
    virtual void make_set(Memory& memory) = 0;
    // Runs on set `index`, counted round and round.
    virtual void launch(Backend& backend, int64_t index) const = 0;
    // Holds the first set's results, after a launch, against the CPU's.
    virtual Check check(Twin& twin) const = 0;
    virtual void forget_sets() = 0;

  private:
    std::string operation_, shape_;
};

template <class Args>
class OperationOf final : public Operation {
  public:
    using Make = std::function<Args(Memory&)>;
    using CheckResult = std::function<Check(Twin&, const Args&)>;

    OperationOf(std::string operation, std::string shape, Make make, CheckResult check)
        : Operation(std::move(operation), std::move(shape)),
          make_(std::move(make)),
          check_(std::move(check)) {}

    Needs needs(Backend& backend) const override {
        Memory counting(backend, Memory::Mode::counting);
        const Args args = make_(counting);
        const auto dry_run = backend.measuring();
        dry_run->run(args);
        return {.cost = cost(args), .bytes = counting.bytes(), .scratch = dry_run->scratch_bytes()};
    }
    void make_set(Memory& memory) override { sets_.push_back(make_(memory)); }
    void launch(Backend& backend, int64_t index) const override {
        backend.run(sets_[index % static_cast<int64_t>(sets_.size())]);
    }
    Check check(Twin& twin) const override { return check_(twin, sets_.front()); }
    void forget_sets() override { sets_.clear(); }

  private:
    Make make_;
    CheckResult check_;
    std::vector<Args> sets_;
};

using Operations = std::vector<std::unique_ptr<Operation>>;

// Every operation of the forward pass, at the shapes of published models where `device` is a GPU and at those
// of a small one where it is the CPU.
Operations all_operations(DeviceKind device);

}  // namespace minipuzzle::cli::bench
