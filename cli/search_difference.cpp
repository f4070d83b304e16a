// inspect A B of two search.json of one teacher.
#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "cli/search_text.h"
#include "cli/table.h"
#include "cli/units.h"
#include "runtime/rank_correlation.h"

namespace minipuzzle::cli {
namespace {

constexpr std::size_t kFirst = 10, kColumns = 100;

// A student that one or both list, with its place in each (1: best predicted).
struct Shared {
    const nas::Candidate *a = nullptr, *b = nullptr;
    int64_t rank_a = 0, rank_b = 0;
    const nas::Candidate& any() const { return a ? *a : *b; }
};

// In a's order, then what b alone has in b's.
std::vector<Shared> students_of(const nas::SearchResult& a, const nas::SearchResult& b) {
    std::vector<Shared> all;
    std::map<std::pair<std::vector<int64_t>, int64_t>, std::size_t> place;
    const auto key = [](const nas::Candidate& each) { return std::pair(each.plan.drop, each.ffn_width); };
    for (std::size_t i = 0; i < a.candidates.size(); ++i) {
        place[key(a.candidates[i])] = all.size();
        all.push_back({.a = &a.candidates[i], .rank_a = static_cast<int64_t>(i) + 1});
    }
    for (std::size_t i = 0; i < b.candidates.size(); ++i) {
        const auto found = place.find(key(b.candidates[i]));
        if (found == place.end()) all.push_back({});
        Shared& student = found == place.end() ? all.back() : all[found->second];
        student.b = &b.candidates[i];
        student.rank_b = static_cast<int64_t>(i) + 1;
    }
    return all;
}

std::optional<double> agreement(const std::vector<Shared>& students) {
    std::vector<double> a, b;
    for (const Shared& each : students)
        if (each.a && each.b) {
            a.push_back(each.a->predicted.value);
            b.push_back(each.b->predicted.value);
        }
    return spearman(a, b);
}

std::vector<int64_t> without(const std::vector<int64_t>& a, const std::vector<int64_t>& b) {
    std::vector<int64_t> left;
    std::set_difference(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(left));
    return left;
}

std::string budget_cell(const nas::SearchResult& search) {
    if (search.budget_bytes >= 0) return format_bytes(search.budget_bytes);
    return search.max_params ? format_count(*search.max_params) + " parameters" : "-";
}

std::string loss_cell(const nas::Candidate& candidate) {
    return cell(candidate.measured ? std::optional(candidate.measured->loss) : std::nullopt);
}

std::string heads_table(const nas::SearchResult& a, const nas::SearchResult& b) {
    const nas::Candidate &best_a = nas::find_candidate(a, ""), &best_b = nas::find_candidate(b, "");
    Table table({"", "a", "b"});
    const auto add = [&](const char* what, const std::string& in_a, const std::string& in_b) {
        table.add({what, in_a, in_b});
    };
    const auto corrected = [](const nas::SearchResult& search) {
        return search.type_corrections ? "from " + search.type_corrections->origin : std::string("none");
    };
    const auto chosen = [](const nas::SearchResult& search) {
        return search.status == "measured" ? "measured " + search.select_by : "predicted";
    };
    add("objective", std::string(name(a.objective)), std::string(name(b.objective)));
    if (a.type_corrections || b.type_corrections) add("corrections per type", corrected(a), corrected(b));
    add("chosen by", chosen(a), chosen(b));
    add("budget", budget_cell(a), budget_cell(b));
    add("candidates", std::to_string(a.candidates.size()), std::to_string(b.candidates.size()));
    add("best", best_a.id, best_b.id);
    add("kept", kept_text(a.teacher_pattern, best_a.plan.drop),
        kept_text(b.teacher_pattern, best_b.plan.drop));
    add("FFN width", std::to_string(best_a.ffn_width), std::to_string(best_b.ffn_width));
    add("params", format_count(best_a.params), format_count(best_b.params));
    add("memory", format_bytes(best_a.memory.total()), format_bytes(best_b.memory.total()));
    add("predicted", cell(best_a.predicted.value), cell(best_b.predicted.value));
    if (best_a.measured || best_b.measured) add("measured loss", loss_cell(best_a), loss_cell(best_b));
    return table.text();
}

// Those among the first of either, by the better of both ranks.
std::vector<Shared> first_of(std::vector<Shared> students) {
    const auto place = [](const Shared& each) {
        return std::min(each.a ? each.rank_a : each.rank_b, each.b ? each.rank_b : each.rank_a);
    };
    std::stable_sort(students.begin(), students.end(),
                     [&](const Shared& x, const Shared& y) { return place(x) < place(y); });
    if (students.size() > kFirst) students.resize(kFirst);
    return students;
}

std::string rank_cell(const nas::Candidate* candidate, int64_t rank) {
    return candidate ? std::to_string(rank) : "-";
}

std::string value_cell(const nas::Candidate* candidate) {
    return cell(candidate ? std::optional(candidate->predicted.value) : std::nullopt);
}

}  // namespace

std::string search_difference_text(const nas::SearchResult& a, const nas::SearchResult& b) {
    const nas::Candidate &best_a = nas::find_candidate(a, ""), &best_b = nas::find_candidate(b, "");
    std::string text = heads_table(a, b);
    const auto only_a = without(best_a.plan.drop, best_b.plan.drop),
               only_b = without(best_b.plan.drop, best_a.plan.drop);
    text += wrapped("only a's best drops " + layers_text(a.teacher_pattern, only_a), kColumns);
    text += wrapped("only b's best drops " + layers_text(b.teacher_pattern, only_b), kColumns);
    const std::vector<Shared> students = students_of(a, b);
    const auto shared =
        std::count_if(students.begin(), students.end(), [](const Shared& each) { return each.a && each.b; });
    text += fmt::format("\n{} students in both", shared);
    if (const auto correlation = agreement(students))
        text += fmt::format(", Spearman of the predictions {:.4f}", *correlation);
    Table table({"rank a", "rank b", "kept", "ffn_width", "memory", "predicted a", "predicted b", "loss"});
    for (const Shared& each : first_of(students))
        table.add({rank_cell(each.a, each.rank_a), rank_cell(each.b, each.rank_b),
                   kept_text(a.teacher_pattern, each.any().plan.drop), std::to_string(each.any().ffn_width),
                   format_bytes(each.any().memory.total()), value_cell(each.a), value_cell(each.b),
                   loss_cell(each.a && each.a->measured ? *each.a
                             : each.b                   ? *each.b
                                                        : *each.a)});
    return text + "\n" + table.text();
}

Json search_difference_json(const nas::SearchResult& a, const nas::SearchResult& b) {
    const nas::Candidate &best_a = nas::find_candidate(a, ""), &best_b = nas::find_candidate(b, "");
    const std::vector<Shared> students = students_of(a, b);
    const auto correlation = agreement(students);
    Json list = Json::array();
    int64_t shared = 0;
    const auto place = [](const nas::Candidate* candidate, int64_t rank) -> Json {
        if (!candidate) return nullptr;
        return {{"id", candidate->id}, {"rank", rank}, {"predicted", candidate->predicted.value}};
    };
    for (const Shared& each : students) {
        shared += each.a && each.b;
        list.push_back({{"drop", each.any().plan.drop},
                        {"ffn_width", each.any().ffn_width},
                        {"a", place(each.a, each.rank_a)},
                        {"b", place(each.b, each.rank_b)}});
    }
    return {{"best",
             {{"a", best_a.id},
              {"b", best_b.id},
              {"only_a_drops", without(best_a.plan.drop, best_b.plan.drop)},
              {"only_b_drops", without(best_b.plan.drop, best_a.plan.drop)}}},
            {"shared", shared},
            {"rank_correlation", correlation ? Json(*correlation) : Json(nullptr)},
            {"students", list}};
}

}  // namespace minipuzzle::cli
