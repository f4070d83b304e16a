// The CPU twin of a device: the same values in float32 (in double where the device is the CPU itself), and a
// comparison of what both made of them.
#pragma once

#include <initializer_list>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "cli/bench/memory.h"
#include "kernels/backend.h"

namespace minipuzzle::cli::bench {

struct Range {
    int64_t begin = 0, count = 0;
};
// The last `count` of `size` (or all of them).
inline Range last(int64_t size, int64_t count) {
    return count < size ? Range{size - count, count} : Range{0, size};
}

// How an operation's result is rounded, which says how far it may be from the twin's.
enum class Rounding {
    once,     // when stored
    inside,   // also between its steps
    precise,  // stored as float32
};

// What a check found: ||device - twin|| / ||twin|| over the part compared.
struct Check {
    std::string part;
    double error = 0, tolerance = 0;
    bool passed() const { return error <= tolerance; }  // NaN is not
};

class Twin {
  public:
    Twin(Backend& device, int threads);

    Backend& backend() { return *cpu_; }
    // For what accumulates: its state before the launch that is checked must be known.
    Backend& device() { return device_; }
    // These rows and columns of a device tensor, seen as [rows, columns], in the twin's type (indices stay
    // i32, E4M3 codes become the numbers they are without their scales).
    Tensor part(const Tensor& tensor, Range rows, const std::vector<Range>& columns,
                std::initializer_list<int64_t> extents);
    Tensor rows(const Tensor& tensor, Range range, std::initializer_list<int64_t> extents) {
        return part(tensor, range, {{0, tensor.columns()}}, extents);
    }
    // The rows as one sequence, [1, rows, columns]; nothing of a tensor that is not given.
    Tensor sequence(const Tensor& tensor, Range range) {
        return tensor ? rows(tensor, range, {1, range.count, tensor.columns()}) : Tensor();
    }
    // All of it, in its own extents.
    Tensor whole(const Tensor& tensor);
    Tensor indices(const std::vector<int32_t>& values);
    // Not a number in every element.
    Tensor empty(std::initializer_list<int64_t> extents);
    Codes empty_codes(std::initializer_list<int64_t> extents);

    // The part of a device result against the twin's, which holds just that part.
    Check compare(const std::string& part, const Tensor& result, Range rows,
                  const std::vector<Range>& columns, const Tensor& expected, Rounding rounding);
    double tolerance(Rounding rounding) const;

  private:
    Tensor take(DType dtype, std::initializer_list<int64_t> extents);
    void convert_rows(const Tensor& tensor, const std::byte* raw, int64_t rows,
                      const std::vector<Range>& columns, std::byte* to) const;
    Backend& device_;
    std::unique_ptr<Backend> cpu_;
    std::list<std::vector<std::byte>> memory_;
};

}  // namespace minipuzzle::cli::bench
