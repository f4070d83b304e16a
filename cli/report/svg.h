// Drawing: an SVG picture as text, scales and their ticks, and a conservative estimate of text widths.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace minipuzzle::report {

struct Point {
    double x = 0, y = 0;
};
struct Box {
    double x = 0, y = 0, width = 0, height = 0;
    double right() const { return x + width; }
    double bottom() const { return y + height; }
};

enum class Anchor { start, middle, end };

// Builds one picture. Every string that may come from a file is plain text here and escaped inside; css
// classes are ours. Colours live in the page's style sheet alone, so that both themes reach them.
class Svg {
  public:
    // `label` is the text alternative. The picture scales down with the page, never up.
    Svg(double width, double height, const std::string& label, const std::string& css_class = "figure");

    void open_group(const std::string& css_class, const std::string& tooltip = "");
    void close_group();
    void rect(const Box& box, const std::string& css_class, const std::string& tooltip = "");
    void line(Point from, Point to, const std::string& css_class);
    void polyline(const std::vector<Point>& points, const std::string& css_class);
    void path(const std::string& commands, const std::string& css_class, const std::string& tooltip = "");
    void circle(Point centre, double radius, const std::string& css_class, const std::string& tooltip = "");
    void text(Point at, const std::string& text, Anchor anchor = Anchor::start,
              const std::string& css_class = "label");
    // What is drawn until close_clipped is cut off outside `box`.
    void open_clipped(const Box& box);
    void close_clipped();
    std::string finish() const;

  private:
    void leaf(const std::string& element, const std::string& tooltip);
    std::string out_;
};

// A coordinate with at most two decimals.
std::string px(double value);

// A little more than the width of `text` in the page's font at `size` pixels.
double text_width(std::string_view text, double size = 12);

// symlog: linear within about `knee` of 0, logarithmic beyond, of either sign.
enum class ScaleKind { linear, log, symlog };
// Maps data [from, to] to pixels [start, end].
struct Scale {
    double from = 0, to = 1, start = 0, end = 1;
    ScaleKind kind = ScaleKind::linear;
    double knee = 1;
    double operator()(double value) const;
};
// The knee for values that a linear axis would flatten: the power of ten at or below their lower quartile
// where the largest is more than `most` times that quartile; null where linear will do. By magnitude.
std::optional<double> symlog_knee(std::vector<double> values, double most);

// Round numbers inside [from, to], about `count` of them, and how to write them: with equal decimals on a
// linear scale, each as short as it goes (decimals -1) on a logarithmic one.
struct Ticks {
    std::vector<double> values;
    int decimals = 0;
    std::string label(double value) const;
};
Ticks ticks(const Scale& scale, int count);

struct Plot {
    Box box;
    Scale x, y;
    Point at(double data_x, double data_y) const { return {x(data_x), y(data_y)}; }
};
// Grid lines and numbers at the left; the title stands above the axis, level with the page.
void draw_y_axis(Svg& svg, const Plot& plot, const std::string& title, int count = 5);
// A base line, ticks and numbers below, the title under them.
void draw_x_axis(Svg& svg, const Plot& plot, const std::string& title, int count = 8);

// Every how many layers a number is written, so that numbers stand at least `apart` pixels from each other
// where layers stand `slot` pixels apart: 1, 2, 5, 10, 20, ...
int64_t tick_step(double slot, double apart);

// Gives labels that would overlap in one row a higher row.
class LabelRows {
  public:
    // The lowest row (0 first) where [left, right] is free; the place is then taken.
    int place(double left, double right);
    int rows() const { return static_cast<int>(taken_.size()); }

  private:
    std::vector<std::vector<std::pair<double, double>>> taken_;
};

}  // namespace minipuzzle::report
