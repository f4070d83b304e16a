// StudentPlan: what to keep of a teacher. plan.yaml: minipuzzle.plan/1.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "runtime/architecture.h"
#include "runtime/artefact.h"

namespace minipuzzle {

struct StudentPlan {
    std::vector<int64_t> drop;              // layers of the teacher, ascending, unique
    std::optional<int64_t> ffn_width;       // one width for every FFN kept
    std::map<int64_t, int64_t> ffn_widths;  // or per teacher layer; exclusive with ffn_width
    std::optional<int64_t> mamba_heads_per_group;
    std::string width_scores;  // file with the neuron and head orders, relative to the plan; needed by widths
    std::string notes;
    bool operator==(const StudentPlan&) const = default;

    bool drops(int64_t layer) const;
    // The FFN width of a teacher layer under this plan.
    int64_t width_of(const Architecture& teacher, int64_t layer) const;
    std::vector<int64_t> kept(const Architecture& teacher) const;
};

// One plan a layer, in order, that drops it alone: what a score sweep measures.
std::vector<StudentPlan> leave_one_out(const Architecture& architecture);

// Error bad_input where the plan does not fit the teacher (a layer that is not there, a width above the
// teacher's, a width for a layer that is no FFN, nothing left).
void check_plan(const StudentPlan& plan, const Architecture& teacher, const std::string& where);
// The student's architecture.
Architecture student_architecture(const Architecture& teacher, const StudentPlan& plan);

StudentPlan read_plan(const std::filesystem::path& path);
// plan.yaml text, as examples/plan.yaml spells it.
std::string plan_text(const StudentPlan& plan);
// Rows of eval --plans: {"drop": [...], "ffn_width": N}.
std::vector<StudentPlan> read_plan_rows(const std::filesystem::path& path);

}  // namespace minipuzzle
