// The trained student as a Hugging Face folder.
#pragma once

#include <filesystem>

#include "distill/optimizer.h"
#include "distill/trainer.h"

namespace minipuzzle::distill {

// Names, dtypes, config and other files after the student's layout (see Student). Tensors of the layout that
// belong to no slot are passed through. Values are what was trained, rounded to nearest even.
OutgoingCheckpoint outgoing_student(Backend& backend, const Student& student,
                                    const std::vector<TrainedParameter>& parameters);

// Writes the model into a folder that already holds other things of ours: complete in `scratch` first, then
// moved file by file with config.json last, so that no half model can be mistaken for one. Run again after a
// kill it ends in the same files.
void publish_model(const OutgoingCheckpoint& checkpoint, const std::filesystem::path& scratch,
                   const std::filesystem::path& folder);

// Removes what publish_model wrote before (config.json first), nothing else.
void retract_model(const std::filesystem::path& folder);

}  // namespace minipuzzle::distill
