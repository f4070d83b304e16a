// What the device itself does at best: a large copy and large products, as measured here.
#pragma once

#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/costs.h"

namespace minipuzzle::cli::bench {

struct LimitRow {
    std::string name;
    double ms = 0, per_second = 0;  // bytes or flops
};

struct Limits {
    LimitRow copy;  // bytes read and bytes written
    std::vector<LimitRow> products, quantised_products;
    // Bytes and flops a second, the best of the rows.
    double bandwidth = 0, product_rate = 0, quantised_product_rate = 0;

    // Seconds below which `cost` cannot be had.
    double seconds(const Cost& cost) const;
    bool memory_bound(const Cost& cost) const;

  private:
    double product_seconds(const Cost& cost) const;
};

Limits measure_limits(Backend& backend);

// FLOPs a second of one large product.
double measure_product_rate(Backend& backend);

}  // namespace minipuzzle::cli::bench
