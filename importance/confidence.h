// Confidence intervals of paired per-sequence differences, clustered by document: for a fixed amount of data,
// and for looking as often as one likes.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "runtime/score_table.h"

namespace minipuzzle::importance {

// An interval of fewer documents says nothing; there is none then.
inline constexpr int64_t kFewestDocuments = 8;

// The q-quantile of Student's t with `degrees` degrees of freedom, to about 1e-9; q in (0, 1).
double student_t_quantile(double q, int64_t degrees);

// Windows of one document resemble each other, so documents are what is drawn independently: each enters
// with the sum over its windows.
struct DocumentSums {
    std::vector<double> values;  // sum of value x tokens of each document, in order of first appearance
    std::vector<double> tokens;

    int64_t documents() const { return static_cast<int64_t>(values.size()); }
    double mean() const;  // per token
};
// Of `values` (one per window, a mean over its tokens); tokens and documents of at least as many windows.
DocumentSums document_sums(const std::vector<double>& values, const std::vector<int64_t>& tokens,
                           const std::vector<int64_t>& documents);

// Standard error of mean(): the ratio estimator of cluster totals, its variance linearised (Cochran 1977,
// section 6.4 for the ratio, chapter 9A for clusters of unequal size). At least two documents.
double standard_error(const DocumentSums& sums);

// 95 % interval of the token-weighted mean of `differences` (one per window): Student t around mean() with
// one degree of freedom less than documents; where every document gives one window of equal length, the plain
// paired interval. nullopt under kFewestDocuments.
std::optional<Interval> paired_interval(const std::vector<double>& differences,
                                        const std::vector<int64_t>& tokens,
                                        const std::vector<int64_t>& documents);

// An interval that holds for all numbers of documents at once: with probability 1 - alpha the mean lies in
// every one of the intervals that are formed as documents come in, so one may look after each and stop when
// one likes.
//
// Ville's inequality on the Bayes factor of Student's t test with a normal prior N(0, g) on the effect size
// mean / sigma (Gönen, Johnson, Lu & Westfall 2005). With n documents and t = sqrt(n) (mean - m) / s it is
//     B_n(m) = (1 + n g)^(-1/2) [ (1 + t^2 / (n - 1)) / (1 + t^2 / ((n - 1) (1 + n g))) ]^(n/2),
// where the differences are normal a nonnegative martingale of mean one at the true m, whatever sigma (Wang &
// Ramdas, arXiv 2310.03722, the Gaussian mixture of their scale invariant likelihood ratios). The interval is
// {m : B_n(m) < 1/alpha}; with K = ((1 + n g)^(1/2) / alpha)^(2/n) that is
//     |t| < sqrt( (n - 1) (K - 1) / (1 - K / (1 + n g)) ),  everything where K >= 1 + n g.
// For large n it becomes the asymptotic confidence sequence of Waudby-Smith et al. (arXiv 2103.06476, section
// 2; their rho^2 = g),
//     |t| < sqrt( 2 (n g + 1) / (n g) log( (n g + 1)^(1/2) / alpha ) ),
// which holds for any distribution with a variance; a mean over the tokens of a document is near enough to
// normal, and few documents get the wider interval that an estimated variance asks for. g makes the
// asymptotic interval narrowest at about `tuned_for` documents. nullopt under kFewestDocuments or where the
// interval is everything.
std::optional<Interval> confidence_sequence(const DocumentSums& sums, double alpha, int64_t tuned_for);

}  // namespace minipuzzle::importance
