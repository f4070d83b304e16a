// Device memory of one benchmark, filled with repeatable random values.
#pragma once

#include <initializer_list>
#include <vector>

#include "kernels/backend.h"

namespace minipuzzle::cli::bench {

// A quantised tensor (ops.h).
struct Codes {
    Tensor values, scale;
};

// Hands out tensors and owns them. Without a device to fill (`counting`) tensors have shapes only, and just
// their bytes are added up.
class Memory {
  public:
    enum class Mode { real, counting };
    explicit Memory(Backend& backend, Mode mode = Mode::real) : backend_(backend), mode_(mode) {}
    ~Memory();
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    // Of the compute type: normal deviates times `scale`. What is `empty` holds such deviates too, so that
    // results which were not written show.
    Tensor normal(std::initializer_list<int64_t> extents, double scale = 1);
    Tensor empty(std::initializer_list<int64_t> extents);
    // Of the precise type.
    Tensor precise(const std::vector<double>& values);
    Tensor empty_precise(std::initializer_list<int64_t> extents);
    // The E4M3 codes of rows of normal deviates times `scale`, and the rows' scales.
    Codes codes(std::initializer_list<int64_t> extents, double scale = 1);
    Tensor zeros(DType dtype, std::initializer_list<int64_t> extents);
    // Indices in [0, limit).
    Tensor indices(std::initializer_list<int64_t> extents, int64_t limit);

    int64_t bytes() const { return bytes_; }

  private:
    Tensor take(DType dtype, std::initializer_list<int64_t> extents);
    Tensor take_normal(DType dtype, std::initializer_list<int64_t> extents, double scale);
    Backend& backend_;
    Mode mode_;
    std::vector<std::byte*> taken_;
    int64_t bytes_ = 0;
    uint64_t next_key_ = 1;
};

}  // namespace minipuzzle::cli::bench
