#include "importance/stability.h"

#include <algorithm>
#include <cmath>

#include "importance/feed_order.h"
#include "kernels/random.h"
#include "tests/catch.h"

using namespace minipuzzle;
using namespace minipuzzle::importance;

namespace {

struct Data {
    std::vector<std::vector<double>> differences;
    std::vector<int64_t> tokens, documents;
};

// Layer l costs l * step, with noise of `spread` per document.
Data layers_of(int64_t layers, int64_t documents, double step, double spread) {
    Data data{.differences = {}, .tokens = std::vector<int64_t>(documents, 100), .documents = {}};
    for (int64_t i = 0; i < documents; ++i) data.documents.push_back(i);
    for (int64_t l = 0; l < layers; ++l) {
        const CounterRandom noise(static_cast<uint64_t>(l), "noise");
        data.differences.emplace_back();
        for (int64_t i = 0; i < documents; ++i)
            data.differences.back().push_back(static_cast<double>(l) * step + spread * noise.normal(i));
    }
    return data;
}

std::optional<RankStability> stability_of(const Data& data, uint64_t seed = 0) {
    return rank_stability(data.differences, data.tokens, data.documents, seed);
}

}  // namespace

TEST_CASE("A ranking without noise is stable, every layer at its rank") {
    const auto stability = stability_of(layers_of(12, 32, 0.1, 0));
    REQUIRE(stability);
    CHECK(stability->resamples == 1000);
    CHECK(stability->documents == 32);
    CHECK(stability->rank_correlation == Approx(1));
    CHECK(stability->split_half.value() == Approx(1));
    for (int64_t l = 0; l < 12; ++l) CHECK(stability->ranks[l] == std::array<int64_t, 2>{l, l});
}

TEST_CASE("Noise moves ranks, as far as it is large, and the same at every run") {
    const auto calm = stability_of(layers_of(12, 64, 0.1, 0.3)),
               wild = stability_of(layers_of(12, 64, 0.1, 3));
    REQUIRE((calm && wild));
    CHECK(calm->rank_correlation > wild->rank_correlation);
    CHECK(calm->split_half.value() > wild->split_half.value());
    const auto width = [](const RankStability& stability) {
        int64_t sum = 0;
        for (const auto& [low, high] : stability.ranks) sum += high - low;
        return sum;
    };
    CHECK(width(*calm) < width(*wild));
    const auto again = stability_of(layers_of(12, 64, 0.1, 3));
    CHECK(again->ranks == wild->ranks);
    CHECK(again->rank_correlation == wild->rank_correlation);
    CHECK(stability_of(layers_of(12, 64, 0.1, 3), 5)->rank_correlation != wild->rank_correlation);
}

TEST_CASE("A layer's resampled mean spreads as the mean over documents does") {
    // Two layers whose difference has mean m and standard error m: the order flips in the share of resamples
    // that lie below zero, 16 % of a normal distribution.
    Data data = layers_of(2, 400, 0, 0);
    for (int64_t i = 0; i < 400; ++i) data.differences[1][i] = (i % 2 ? 21.0 : -19.0) / 20;
    // mean 0.05, spread 1: standard error 0.05; ranks of both then cover both places
    const auto stability = stability_of(data);
    REQUIRE(stability);
    CHECK(stability->ranks[0] == std::array<int64_t, 2>{0, 1});
    // mean correlation = 1 - 2 x share; sampling error of 1000 resamples is 0.023, four of it allowed
    CHECK(std::abs(stability->rank_correlation - (1 - 2 * 0.1587)) < 0.095);
}

TEST_CASE("Layers of fewer windows take part; under eight documents of any there is no stability") {
    Data data = layers_of(6, 64, 0.1, 0.05);
    data.differences[2].resize(16);
    CHECK(stability_of(data));
    data.differences[2].resize(7);
    CHECK(!stability_of(data));
    CHECK(!stability_of(layers_of(6, 7, 0.1, 0.05)));
    CHECK(!stability_of(layers_of(6, 64, 0, 0)));  // nothing to rank
}

TEST_CASE("Windows of a document are resampled together") {
    Data data = layers_of(8, 60, 0.1, 0.5);
    for (int64_t i = 0; i < 60; ++i) data.documents[i] = i / 4;
    const auto stability = stability_of(data);
    REQUIRE(stability);
    CHECK(stability->documents == 15);
}

TEST_CASE("Windows are fed document by document, in an order that their number does not change") {
    std::vector<Window> windows;
    for (int64_t document : {4, 1, 9, 1, 4, 4, 0})
        windows.push_back({document, static_cast<int64_t>(windows.size()) * 10, 10});
    std::reverse(windows.begin(), windows.end());
    const std::vector<Window> fed = by_document(windows, 3);
    std::vector<int64_t> order;
    for (std::size_t i = 0; i < fed.size(); ++i) {
        if (i == 0 || fed[i].document != fed[i - 1].document)
            order.push_back(fed[i].document);
        else
            CHECK(fed[i].begin > fed[i - 1].begin);
    }
    CHECK(order == seeded_documents({0, 1, 4, 9}, 3));
    CHECK(count_documents({4, 1, 9, 1, 4, 4, 0}) == 4);
    CHECK(seeded_documents({9, 9, 9, 9, 4, 1, 0}, 3) == order);
}
