// The teacher's weights of a run, on the device or streamed to it.
#pragma once

#include <optional>

#include "distill/trainer.h"

namespace minipuzzle::distill {

class TeacherWeights {
  public:
    TeacherWeights(Backend& backend, const Architecture& architecture, const Teacher& teacher) {
        if (teacher.weight_memory > 0)
            streamed_.emplace(backend, architecture, *teacher.source, teacher.from, teacher.weight_memory);
        else
            resident_.emplace(load_weights(backend, architecture, *teacher.source));
    }
    WeightSource source() {
        return resident_ ? WeightSource(resident_->weights()) : WeightSource(*streamed_);
    }

  private:
    std::optional<WeightMemory> resident_;
    std::optional<StreamedWeights> streamed_;
};

}  // namespace minipuzzle::distill
