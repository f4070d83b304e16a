// The page's style sheet.
#pragma once

namespace minipuzzle::report {

extern const char* const kStyle;

}  // namespace minipuzzle::report
