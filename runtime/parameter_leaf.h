// The part of a parameter's canonical name that says what it is, whichever layer it belongs to.
#pragma once

#include <string>

#include "runtime/checkpoint.h"

namespace minipuzzle {

// "layers.3.mixer.A_log" -> "mixer.A_log"; names outside the layers stay as they are.
inline std::string leaf_of(const TensorSlot& slot) {
    if (slot.layer < 0) return slot.name;
    return slot.name.substr(slot.name.find('.', std::string("layers.").size()) + 1);
}

}  // namespace minipuzzle
