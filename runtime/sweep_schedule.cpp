#include <map>

#include "runtime/variant_sweep.h"

namespace minipuzzle {

namespace {

constexpr int64_t kBase = -1;   // a group member that is the full model
constexpr int64_t kDrop = -2;   // an action: skip the layer
constexpr int64_t kWhole = -1;  // an action: the layer as it is (Step::ffn_width)

struct Group {
    int64_t slot = 0;
    std::vector<int64_t> members;  // plans, or kBase
};

int64_t action_of(const Architecture& architecture, const std::vector<StudentPlan>& plans, int64_t member,
                  int64_t layer) {
    if (member == kBase) return kWhole;
    const StudentPlan& plan = plans[member];
    if (plan.drops(layer)) return kDrop;
    const Ffn* ffn = std::get_if<Ffn>(&architecture.layers[layer]);
    if (!ffn) return kWhole;
    const int64_t width = plan.width_of(architecture, layer);
    return width == ffn->width ? kWhole : width;
}

// Splits one group by what its members do at the layer; the steps read the old buffer before it is
// overwritten.
void split(const std::map<int64_t, std::vector<int64_t>>& by_action, int64_t slot, SweepSchedule& schedule,
           std::vector<Group>& groups) {
    const bool some_drop = by_action.count(kDrop) > 0;
    std::size_t left = by_action.size();
    for (const auto& [action, members] : by_action) {
        --left;
        if (action == kDrop) {
            groups.push_back({slot, members});
            continue;
        }
        const bool in_place = !some_drop && left == 0;
        const int64_t to = in_place ? slot : schedule.slots++;
        schedule.layers.back().push_back({slot, to, action, members.front() == kBase});
        groups.push_back({to, members});
    }
}

double layer_multiply_adds(const Architecture& architecture, int64_t layer, int64_t ffn_width, int64_t tokens,
                           int64_t length) {
    return ffn_width >= 0 ? multiply_adds(architecture, Ffn{ffn_width}, tokens, length)
                          : multiply_adds(architecture, architecture.layers[layer], tokens, length);
}

}  // namespace

bool can_sweep(const Architecture& architecture, const StudentPlan& plan) {
    if (!plan.mamba_heads_per_group) return true;
    for (const int64_t layer : plan.kept(architecture)) {
        const Mamba* mamba = std::get_if<Mamba>(&architecture.layers[layer]);
        if (mamba && mamba->heads != mamba->groups * *plan.mamba_heads_per_group) return false;
    }
    return true;
}

SweepSchedule make_schedule(const Architecture& architecture, const std::vector<StudentPlan>& plans) {
    for (const StudentPlan& plan : plans) MP_ASSERT(can_sweep(architecture, plan));
    SweepSchedule schedule;
    std::vector<Group> groups{{0, {kBase}}};
    for (std::size_t i = 0; i < plans.size(); ++i) groups[0].members.push_back(static_cast<int64_t>(i));
    for (std::size_t layer = 0; layer < architecture.layers.size(); ++layer) {
        schedule.layers.emplace_back();
        std::vector<Group> next;
        for (const Group& group : groups) {
            std::map<int64_t, std::vector<int64_t>> by_action;
            for (int64_t member : group.members)
                by_action[action_of(architecture, plans, member, static_cast<int64_t>(layer))].push_back(
                    member);
            split(by_action, group.slot, schedule, next);
        }
        groups = std::move(next);
    }
    schedule.plan_slot.resize(plans.size());
    for (const Group& group : groups)
        for (int64_t member : group.members)
            (member == kBase ? schedule.base_slot : schedule.plan_slot[member]) = group.slot;
    return schedule;
}

Work step_work(const Architecture& architecture, int64_t layer, const SweepSchedule::Step& step,
               int64_t tokens, int64_t length) {
    Work work;
    work.of[static_cast<int>(type_of(architecture.layers[layer]))] =
        layer_multiply_adds(architecture, layer, step.ffn_width, tokens, length);
    return work;
}

Work head_work(const Architecture& architecture, const SweepSchedule& schedule, int64_t tokens) {
    Work work;
    work.of[kHeadWork] = static_cast<double>(schedule.slots) * head_multiply_adds(architecture, tokens);
    return work;
}

Work schedule_work(const Architecture& architecture, const SweepSchedule& schedule, int64_t tokens,
                   int64_t length) {
    Work work = head_work(architecture, schedule, tokens);
    for (std::size_t layer = 0; layer < schedule.layers.size(); ++layer)
        for (const SweepSchedule::Step& step : schedule.layers[layer])
            work += step_work(architecture, static_cast<int64_t>(layer), step, tokens, length);
    return work;
}

double shared_multiply_adds(const Architecture& architecture, const SweepSchedule& schedule, int64_t tokens,
                            int64_t length) {
    return schedule_work(architecture, schedule, tokens, length).total();
}

double separate_multiply_adds(const Architecture& architecture, const std::vector<StudentPlan>& plans,
                              int64_t tokens, int64_t length) {
    double sum = static_cast<double>(plans.size() + 1) * head_multiply_adds(architecture, tokens);
    for (std::size_t layer = 0; layer < architecture.layers.size(); ++layer) {
        const int64_t l = static_cast<int64_t>(layer);
        for (int64_t member = kBase; member < static_cast<int64_t>(plans.size()); ++member) {
            const int64_t action = action_of(architecture, plans, member, l);
            if (action != kDrop) sum += layer_multiply_adds(architecture, l, action, tokens, length);
        }
    }
    return sum;
}

}  // namespace minipuzzle
