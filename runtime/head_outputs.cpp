#include "runtime/head_outputs.h"

#include "runtime/weights.h"

namespace minipuzzle {

std::vector<std::vector<double>> TokenMetrics::window_means(Backend& backend,
                                                            const WindowBatch& batch) const {
    const std::vector<float> values = to_host(backend, block);
    std::vector<std::vector<double>> means(block.size(0), std::vector<double>(batch.batch));
    auto value = values.begin();
    for (std::vector<double>& of_metric : means)
        for (double& mean : of_metric) {
            double sum = 0;
            for (int64_t t = 0; t < batch.length; ++t) sum += *value++;
            mean = sum / static_cast<double>(batch.length);
        }
    return means;
}

}  // namespace minipuzzle
