#include "cli/fits.h"

#include <fmt/format.h>

#include "cli/units.h"
#include "kernels/check.h"

namespace minipuzzle::cli {
namespace {

nas::Fit fit_of(const std::string& word, const Architecture& teacher, const nas::Workload& workload) {
    const auto colon = word.find(':'), cross = word.find('x');
    if (cross == std::string::npos || cross > colon)
        fail_usage(fmt::format("'{}' is no workload, expected CONTEXTxBATCH[:SIZE] like 8kx64:40GiB", word));
    const std::string batch = word.substr(cross + 1, colon == std::string::npos ? colon : colon - cross - 1);
    nas::Fit fit{.context = parse_count(word.substr(0, cross)), .batch = parse_count(batch)};
    if (fit.context < 1 || fit.batch < 1)
        fail_usage(fmt::format("'{}': context and batch are at least 1", word));
    if (colon == std::string::npos) return fit;
    const int64_t total = nas::memory_of(teacher, nas::workload_at(workload, fit)).total();
    fit.bytes = Amount::parse(word.substr(colon + 1), AmountOf::bytes).of(total);
    return fit;
}

}  // namespace

std::vector<nas::Fit> fits_of(const std::vector<std::string>& words, const Architecture& teacher,
                              const nas::Workload& workload) {
    std::vector<nas::Fit> fits;
    for (const std::string& word : words) {
        try {
            fits.push_back(fit_of(word, teacher, workload));
        } catch (const Error& error) {
            fail_usage(fmt::format("--fits: {}", error.what()));
        }
    }
    return fits;
}

}  // namespace minipuzzle::cli
