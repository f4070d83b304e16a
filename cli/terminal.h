// What the place that stdout goes to can show.
#pragma once

#include <string>

namespace minipuzzle::cli {

struct Terminal {
    int columns = 100;
    bool unicode = false;  // the locale's characters are UTF-8
};

// A terminal's own width; elsewhere COLUMNS, or 100. Unicode by LC_ALL, LC_CTYPE or LANG, the first that is
// set, and not on TERM=dumb.
Terminal stdout_terminal();

// A bar of at most `width` cells for a share in [0, 1]: eighths of a cell in Unicode, whole '#' otherwise. A
// share above 1 fills the width and ends in a mark that says so.
std::string bar(double share, int width, bool unicode);

}  // namespace minipuzzle::cli
