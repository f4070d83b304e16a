#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <numeric>
// COIN-OR's headers.
#include <CbcModel.hpp>
#include <CbcSolver.hpp>
#include <CoinBuild.hpp>
#include <OsiClpSolverInterface.hpp>

#include "kernels/check.h"
#include "nas/choice_solver.h"

namespace minipuzzle::nas {

namespace {

// CBC reports on standard output, which is ours: nothing passes.
class Silence : public CoinMessageHandler {
  public:
    int print() override { return 0; }
    CoinMessageHandler* clone() const override { return new Silence(*this); }
};

double seconds_since(std::chrono::steady_clock::time_point began) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

const double kInfinity = COIN_DBL_MAX;

// A linear form over the program's columns.
struct Form {
    std::vector<int> columns;
    std::vector<double> coefficients;
    void add(int column, double coefficient) {
        columns.push_back(column);
        coefficients.push_back(coefficient);
    }
};

struct Row {
    Form form;
    double lower = 0, upper = 0;
};

// The mixed-integer program of a problem: a binary column for every choice of an item that has several, one
// for each pair's product.
class Program {
  public:
    explicit Program(const ChoiceProblem& problem) : problem_(problem) {
        add_choices();
        for (const PairCost& pair : problem.pairs) add_pair(pair);
        for (const ChoiceConstraint& constraint : problem.constraints) add_constraint(constraint);
    }

    // Forbids one assignment.
    void cut_off(const Assignment& assignment) {
        Form form;
        for (std::size_t i = 0; i < assignment.size(); ++i)
            if (column_[i][assignment[i]] >= 0) form.add(column_[i][assignment[i]], 1);
        add_row(form, -kInfinity, static_cast<double>(form.columns.size()) - 1);
    }

    struct Outcome {
        bool optimal = false, infeasible = false;  // proven
        double bound = 0;                          // in the problem's terms
        Assignment assignment;                     // empty: none was found
    };
    // No start is handed over and nothing presolved: CBC 2.10.8 ends the process over a start that its root
    // proves best (an assertion of CLP's), and over presolved programs that become empty.
    Outcome solve(double seconds) const {
        Silence silence;
        silence.setLogLevel(0);
        OsiClpSolverInterface solver;
        solver.passInMessageHandler(&silence);
        load(solver);
        solver.initialSolve();
        if (solver.isProvenPrimalInfeasible()) return {.infeasible = true};
        const double relaxed = solver.isProvenOptimal() ? solver.getObjValue() : -kInfinity;
        CbcModel model(solver);
        model.passInMessageHandler(&silence);
        CbcSolverUsefulData settings;
        settings.noPrinting_ = true;
        settings.useSignalHandler_ = false;
        CbcMain0(model, settings);
        const std::string limit = fmt::format("{:.3f}", std::max(0.01, seconds));
        const char* arguments[] = {"cbc",  "-log",        "0",         "-timeMode", "elapsed",
                                   "-sec", limit.c_str(), "-ratioGap", "0",         "-allowableGap",
                                   "0",    "-preprocess", "off",       "-solve",    "-quit"};
        CbcMain1(
            static_cast<int>(std::size(arguments)), arguments, model, [](CbcModel*, int) { return 0; },
            settings);
        Outcome outcome;
        outcome.infeasible = model.isProvenInfeasible();
        outcome.optimal = model.isProvenOptimal() && !outcome.infeasible;
        outcome.bound = std::max(relaxed, model.getBestPossibleObjValue()) / scale() + constant_;
        if (model.bestSolution() != nullptr) outcome.assignment = assignment_in(model.bestSolution());
        return outcome;
    }

  private:
    Assignment assignment_in(const double* values) const {
        Assignment assignment;
        for (const std::vector<int>& columns : column_) {
            std::size_t taken = 0;
            for (std::size_t c = 1; c < columns.size(); ++c)
                if (values[columns[c]] > values[columns[taken]]) taken = c;
            assignment.push_back(taken);
        }
        return assignment;
    }

    // CBC's tolerances are absolute: the costs it sees go up to about a thousand. A power of two, which
    // rounds nothing.
    double scale() const {
        double largest = 0;
        for (const double cost : cost_) largest = std::max(largest, std::abs(cost));
        return largest > 0 ? std::exp2(10 - std::ceil(std::log2(largest))) : 1;
    }

    void load(OsiClpSolverInterface& solver) const {
        const int columns = static_cast<int>(cost_.size());
        const std::vector<double> zeros(cost_.size(), 0), ones(cost_.size(), 1);
        CoinPackedMatrix matrix(false, 0, 0);
        matrix.setDimensions(0, columns);
        std::vector<double> lower, upper;
        for (const Row& row : rows_) {
            matrix.appendRow(static_cast<int>(row.form.columns.size()), row.form.columns.data(),
                             row.form.coefficients.data());
            // Every column is between 0 and 1. Bounds that say nothing are finite all the same: CLP 1.17.6
            // ends the process over some infinite ones (an assertion of its dual simplex).
            double least = -1, most = 1;
            for (const double coefficient : row.form.coefficients)
                (coefficient < 0 ? least : most) += coefficient;
            lower.push_back(std::max(row.lower, least));
            upper.push_back(std::min(row.upper, most));
        }
        std::vector<double> cost = cost_;
        for (double& each : cost) each *= scale();
        solver.loadProblem(matrix, zeros.data(), ones.data(), cost.data(), lower.data(), upper.data());
        for (int column = 0; column < columns; ++column) {
            if (whole_[static_cast<std::size_t>(column)]) solver.setInteger(column);
        }
        solver.setObjSense(1);
    }

    int add_column(double cost, bool whole) {
        cost_.push_back(cost);
        whole_.push_back(whole);
        return static_cast<int>(cost_.size()) - 1;
    }
    void add_row(Form form, double lower, double upper) { rows_.push_back({std::move(form), lower, upper}); }

    void add_choices() {
        constant_ = problem_.constant;
        for (const std::vector<Choice>& item : problem_.items) {
            std::vector<int>& columns = column_.emplace_back();
            if (item.size() == 1) {
                columns.push_back(-1);
                constant_ += item.front().cost;
                continue;
            }
            Form one;
            for (const Choice& choice : item) {
                columns.push_back(add_column(choice.cost, true));
                one.add(columns.back(), 1);
            }
            add_row(one, 1, 1);
        }
    }

    void add_pair(const PairCost& pair) {
        const int a = column_[pair.first][pair.first_choice], b = column_[pair.second][pair.second_choice];
        if (pair.cost == 0) return;
        if (a < 0 && b < 0)
            constant_ += pair.cost;
        else if (a < 0 || b < 0)
            cost_[static_cast<std::size_t>(std::max(a, b))] += pair.cost;
        else
            add_product(a, b, pair.cost);
    }

    void add_product(int a, int b, double cost) {
        const int product = add_column(cost, false);
        if (cost > 0) {
            Form above;
            above.add(product, 1);
            above.add(a, -1);
            above.add(b, -1);
            add_row(above, -1, kInfinity);
            return;
        }
        for (const int factor : {a, b}) {
            Form below;
            below.add(product, 1);
            below.add(factor, -1);
            add_row(below, -kInfinity, 0);
        }
    }

    // What a constraint says of the sum of its rows. Quotients are rounded up, so that the sum lies between
    // `divisor` times the amount and at most divisor - 1 a row below it: necessary, and exact where all are
    // divisible.
    void add_constraint(const ChoiceConstraint& constraint) {
        int64_t fixed = 0;
        for (const std::size_t row : constraint.rows) fixed += problem_.fixed[row];
        std::vector<std::vector<int64_t>> weights;
        int64_t common = 0;
        for (const std::vector<Choice>& item : problem_.items) {
            std::vector<int64_t>& sums = weights.emplace_back();
            for (const Choice& choice : item) {
                int64_t sum = 0;
                for (const std::size_t row : constraint.rows) sum += choice.weights[row];
                sums.push_back(sum);
            }
            // Only differences to the first choice move the sum.
            const int64_t first = sums.front();
            fixed += first;
            for (int64_t& sum : sums) common = std::gcd(common, sum -= first);
        }
        const int64_t rounding = static_cast<int64_t>(constraint.rows.size()) * (constraint.divisor - 1);
        const auto below = [](int64_t value, int64_t by) { return -quotient(-value, by); };
        const int64_t step = std::max<int64_t>(1, common);
        int64_t largest = 1;
        Form form;
        for (const auto& sums : weights)
            for (const int64_t sum : sums) largest = std::max(largest, std::abs(sum / step));
        for (std::size_t i = 0; i < weights.size(); ++i)
            for (std::size_t c = 0; c < weights[i].size(); ++c)
                if (weights[i][c] != 0) form.add(column_[i][c], scaled(weights[i][c] / step, largest));
        double lower = -kInfinity, upper = kInfinity;
        if (constraint.upper)
            upper = scaled(below(*constraint.upper * constraint.divisor - fixed, step), largest);
        if (constraint.lower)
            lower =
                scaled(quotient(*constraint.lower * constraint.divisor - rounding - fixed, step), largest);
        add_row(std::move(form), lower, upper);
    }
    // Large whole numbers as CBC's tolerances like them: up to a thousand as they are.
    static double scaled(int64_t value, int64_t largest) {
        return largest <= 1000 ? static_cast<double>(value)
                               : static_cast<double>(value) * (1000.0 / static_cast<double>(largest));
    }

    const ChoiceProblem& problem_;
    std::vector<std::vector<int>> column_;  // [item][choice]; -1: the item has no other choice
    std::vector<double> cost_;              // by column
    std::vector<bool> whole_;
    std::vector<Row> rows_;
    double constant_ = 0;
};

// What CBC proved, said of the best assignment known. That none exists while one is known is an error of
// CBC's arithmetic and proves nothing.
void conclude(const Program::Outcome& outcome, ChoiceSolution& solution) {
    const bool known = !solution.assignment.empty();
    if (outcome.infeasible && !known) {
        solution.status = ChoiceStatus::infeasible;
    } else if (outcome.optimal && known) {
        solution.status = ChoiceStatus::optimal;
        solution.bound = solution.cost;
    } else {
        solution.status = known ? ChoiceStatus::bounded : ChoiceStatus::unknown;
        const double bound = outcome.infeasible ? -kInfinity : outcome.bound;
        solution.bound = known ? std::min(bound, solution.cost) : bound;
    }
}

}  // namespace

ChoiceSolution solve_by_cbc(const ChoiceProblem& problem, const ChoiceSolverOptions& options) {
    if (assignments(problem, 2) == 1) return solve_by_enumeration(problem);  // CBC takes no empty program
    const auto began = std::chrono::steady_clock::now();
    ChoiceSolution solution{.solver = "cbc"};
    if (options.restarts >= 0) solution.assignment = local_search(problem, options.start, options.restarts);
    if (!solution.assignment.empty()) solution.cost = cost_of(problem, solution.assignment);
    Program program(problem);
    for (;;) {
        const Program::Outcome outcome = program.solve(options.seconds - seconds_since(began));
        const Assignment& found = outcome.assignment;
        const bool sound = !found.empty() && satisfies(problem, found);
        if (sound && (solution.assignment.empty() || cost_of(problem, found) < solution.cost)) {
            solution.assignment = found;
            solution.cost = cost_of(problem, found);
        }
        // What rounding let pass is forbidden, and the rest searched again.
        if (outcome.optimal && !found.empty() && !sound) {
            program.cut_off(found);
            continue;
        }
        conclude(outcome, solution);
        break;
    }
    solution.seconds = seconds_since(began);
    return solution;
}

}  // namespace minipuzzle::nas
