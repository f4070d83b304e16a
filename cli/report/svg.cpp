#include "cli/report/svg.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "cli/report/html.h"
#include "kernels/check.h"

namespace minipuzzle::report {

std::string px(double value) {
    std::string text = fmt::format("{:.2f}", value);
    text.erase(text.find_last_not_of('0') + 1);
    if (text.back() == '.') text.pop_back();
    return text == "-0" ? "0" : text;
}

Svg::Svg(double width, double height, const std::string& label, const std::string& css_class) {
    out_ = fmt::format(
        "<svg class=\"{}\" role=\"img\" aria-label=\"{}\" viewBox=\"0 0 {} {}\" style=\"max-width:{}px\">",
        css_class, escape(label), px(width), px(height), px(width));
}

void Svg::open_group(const std::string& css_class, const std::string& tooltip) {
    out_ += fmt::format("<g class=\"{}\">", css_class);
    if (!tooltip.empty()) out_ += "<title>" + escape(tooltip) + "</title>";
}

void Svg::close_group() { out_ += "</g>\n"; }

void Svg::leaf(const std::string& element, const std::string& tooltip) {
    const auto name = element.substr(0, element.find(' '));
    out_ += "<" + element;
    out_ += tooltip.empty() ? "/>" : fmt::format("><title>{}</title></{}>", escape(tooltip), name);
}

void Svg::rect(const Box& box, const std::string& css_class, const std::string& tooltip) {
    leaf(fmt::format("rect class=\"{}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"", css_class, px(box.x),
                     px(box.y), px(box.width), px(box.height)),
         tooltip);
}

void Svg::line(Point from, Point to, const std::string& css_class) {
    leaf(fmt::format("line class=\"{}\" x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\"", css_class, px(from.x),
                     px(from.y), px(to.x), px(to.y)),
         "");
}

void Svg::polyline(const std::vector<Point>& points, const std::string& css_class) {
    std::string list;
    for (const Point& p : points) list += fmt::format("{}{},{}", list.empty() ? "" : " ", px(p.x), px(p.y));
    leaf(fmt::format("polyline class=\"{}\" points=\"{}\"", css_class, list), "");
}

void Svg::path(const std::string& commands, const std::string& css_class, const std::string& tooltip) {
    leaf(fmt::format("path class=\"{}\" d=\"{}\"", css_class, commands), tooltip);
}

void Svg::circle(Point centre, double radius, const std::string& css_class, const std::string& tooltip) {
    leaf(fmt::format("circle class=\"{}\" cx=\"{}\" cy=\"{}\" r=\"{}\"", css_class, px(centre.x),
                     px(centre.y), px(radius)),
         tooltip);
}

void Svg::text(Point at, const std::string& text, Anchor anchor, const std::string& css_class) {
    constexpr const char* kAnchors[] = {"start", "middle", "end"};
    out_ += fmt::format("<text class=\"{}\" x=\"{}\" y=\"{}\" text-anchor=\"{}\">{}</text>", css_class,
                        px(at.x), px(at.y), kAnchors[static_cast<int>(anchor)], escape(text));
}

void Svg::open_clipped(const Box& box) {
    // A nested picture clips to its own view port and, unlike clipPath, needs no id that must be unique on
    // the page.
    out_ += fmt::format(
        "<svg x=\"{0}\" y=\"{1}\" width=\"{2}\" height=\"{3}\" overflow=\"hidden\" viewBox=\"{0} {1} {2} "
        "{3}\">",
        px(box.x), px(box.y), px(box.width), px(box.height));
}

void Svg::close_clipped() { out_ += "</svg>\n"; }

std::string Svg::finish() const { return out_ + "</svg>\n"; }

double text_width(std::string_view text, double size) {
    double ems = 0;
    for (const char c : text) {
        const auto byte = static_cast<unsigned char>(c);
        if ((byte & 0xC0) == 0x80) continue;  // the rest of a multi-byte character
        if (std::string_view("il.,:;'|!()[] ").find(c) != std::string_view::npos)
            ems += 0.36;
        else if (std::string_view("mwMW@%").find(c) != std::string_view::npos)
            ems += 0.95;
        else
            ems += c >= 'A' && c <= 'Z' ? 0.74 : 0.6;
    }
    return ems * size;
}

double Scale::operator()(double value) const {
    double share = (value - from) / (to - from);
    if (kind == ScaleKind::log) share = std::log(value / from) / std::log(to / from);
    if (kind == ScaleKind::symlog) {
        const auto place = [&](double v) { return std::asinh(v / knee); };
        share = (place(value) - place(from)) / (place(to) - place(from));
    }
    return start + share * (end - start);
}

std::optional<double> symlog_knee(std::vector<double> values, double most) {
    for (double& value : values) value = std::fabs(value);
    std::erase_if(values, [](double value) { return !std::isfinite(value); });
    if (values.empty()) return std::nullopt;
    std::sort(values.begin(), values.end());
    const double quartile = values[values.size() / 4];
    if (quartile <= 0 || values.back() <= most * quartile) return std::nullopt;
    return std::pow(10.0, std::floor(std::log10(quartile)));
}

std::string Ticks::label(double value) const {
    return decimals < 0 ? value_text(value) : fixed_text(value, decimals);
}

namespace {

Ticks linear_ticks(double from, double to, int count) {
    const double rough = (to - from) / count;
    const double power = std::pow(10.0, std::floor(std::log10(rough)));
    double step = power * 10;
    for (const double factor : {5.0, 2.5, 2.0, 1.0})
        if (power * factor >= rough * 0.999) step = power * factor;
    Ticks result;
    const double shift = std::log10(step);
    result.decimals = std::max(0, static_cast<int>(std::ceil(-shift - 1e-9)));
    if (std::fabs(step / power - 2.5) < 1e-9 && step < 10) result.decimals += step < 1 || power == 1 ? 1 : 0;
    const double slack = 1e-9 * (to - from);
    for (double k = std::ceil((from - slack) / step); k * step <= to + slack; ++k)
        result.values.push_back(k * step);
    return result;
}

Ticks log_ticks(double from, double to) {
    Ticks result;
    const int first = static_cast<int>(std::floor(std::log10(from)));
    const int last = static_cast<int>(std::ceil(std::log10(to)));
    result.decimals = -1;
    const bool wide = to / from > 200;
    for (int power = first; power <= last; ++power)
        for (const double factor : {1.0, 2.0, 5.0}) {
            const double value = factor * std::pow(10.0, power);
            if ((factor == 1 || !wide) && value >= from && value <= to) result.values.push_back(value);
        }
    return result;
}

// 0 and the powers of ten from the knee on, with their halves and fifths where there is room.
Ticks symlog_ticks(const Scale& scale) {
    constexpr double kApart = 22;  // pixels
    Ticks result;
    result.decimals = -1;
    std::vector<double> wanted = {0};
    for (const std::vector<double>& factors : {std::vector{1.0}, std::vector{2.0, 5.0}})
        for (double power = scale.knee; power <= std::max(scale.to, -scale.from); power *= 10)
            for (const double factor : factors) {
                wanted.push_back(factor * power);
                wanted.push_back(-factor * power);
            }
    for (const double value : wanted) {
        const auto near = [&](double other) { return std::fabs(scale(value) - scale(other)) < kApart; };
        const bool inside = value >= scale.from && value <= scale.to;
        if (inside && std::none_of(result.values.begin(), result.values.end(), near))
            result.values.push_back(value);
    }
    std::sort(result.values.begin(), result.values.end());
    return result;
}

}  // namespace

Ticks ticks(const Scale& scale, int count) {
    MP_ASSERT(scale.to > scale.from);
    if (scale.kind == ScaleKind::symlog) return symlog_ticks(scale);
    return scale.kind == ScaleKind::log ? log_ticks(scale.from, scale.to)
                                        : linear_ticks(scale.from, scale.to, count);
}

void draw_y_axis(Svg& svg, const Plot& plot, const std::string& title, int count) {
    const Ticks marks = ticks(plot.y, count);
    for (const double value : marks.values) {
        const double y = plot.y(value);
        svg.line({plot.box.x, y}, {plot.box.right(), y}, "grid");
        svg.text({plot.box.x - 8, y + 4}, marks.label(value), Anchor::end, "tick");
    }
    svg.text({0, 13}, title, Anchor::start, "axis-title");
}

void draw_x_axis(Svg& svg, const Plot& plot, const std::string& title, int count) {
    const double base = plot.box.bottom();
    svg.line({plot.box.x, base}, {plot.box.right(), base}, "axis");
    const Ticks marks = ticks(plot.x, count);
    for (const double value : marks.values) {
        const double x = plot.x(value);
        svg.line({x, base}, {x, base + 5}, "axis");
        svg.text({x, base + 18}, marks.label(value), Anchor::middle, "tick");
    }
    svg.text({plot.box.right(), base + 36}, title, Anchor::end, "axis-title");
}

int64_t tick_step(double slot, double apart) {
    int64_t step = 1;
    for (int i = 0; static_cast<double>(step) * slot < apart && i < 18; ++i)
        step = i % 3 == 1 ? step / 2 * 5 : step * 2;
    return step;
}

int LabelRows::place(double left, double right) {
    std::size_t row = 0;
    const auto free = [&](const std::pair<double, double>& other) {
        return right <= other.first || left >= other.second;
    };
    while (row < taken_.size() && !std::all_of(taken_[row].begin(), taken_[row].end(), free)) ++row;
    if (row == taken_.size()) taken_.emplace_back();
    taken_[row].emplace_back(left, right);
    return static_cast<int>(row);
}

}  // namespace minipuzzle::report
