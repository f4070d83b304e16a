#include "cli/terminal.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <string_view>

namespace minipuzzle::cli {
namespace {

std::string_view environment(const char* name) {
    const char* value = std::getenv(name);
    return value ? value : "";
}

bool locale_is_utf8() {
    for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
        std::string value(environment(name));
        if (value.empty()) continue;
        for (char& c : value) c = c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
        return value.find("UTF-8") != value.npos || value.find("UTF8") != value.npos;
    }
    return false;
}

}  // namespace

Terminal stdout_terminal() {
    Terminal terminal;
    terminal.unicode = locale_is_utf8() && environment("TERM") != "dumb";
    int columns = 0;
    winsize size{};
    const std::string_view set = environment("COLUMNS");
    if (::isatty(STDOUT_FILENO) && ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0)
        columns = size.ws_col;
    else
        std::from_chars(set.data(), set.data() + set.size(), columns);
    if (columns > 0) terminal.columns = std::clamp(columns, 40, 200);
    return terminal;
}

std::string bar(double share, int width, bool unicode) {
    constexpr const char* kEighths[] = {"",       "\u258f", "\u258e", "\u258d",
                                        "\u258c", "\u258b", "\u258a", "\u2589"};
    if (!(share > 0) || width < 1) return "";
    const bool beyond = share > 1;
    const double cells = beyond ? width - 1 : share * width;
    std::string text;
    const int eighths = static_cast<int>(std::lround(cells * 8));
    const int whole = unicode ? eighths / 8 : static_cast<int>(std::lround(cells));
    for (int i = 0; i < whole; ++i) text += unicode ? "\u2588" : "#";
    if (beyond) return text + (unicode ? "\u25b6" : ">");
    return unicode ? text + kEighths[eighths % 8] : text;
}

}  // namespace minipuzzle::cli
