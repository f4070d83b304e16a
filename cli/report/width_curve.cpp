#include "cli/report/width_curve.h"

#include <fmt/format.h>

#include <algorithm>

#include "cli/report/html.h"
#include "cli/report/svg.h"

namespace minipuzzle::report {

std::string width_curve(const std::vector<WidthPoint>& curve) {
    if (curve.empty()) return "";
    std::vector<WidthPoint> points = curve;
    std::sort(points.begin(), points.end(),
              [](const WidthPoint& a, const WidthPoint& b) { return a.ffn_width < b.ffn_width; });
    double low = 0, high = 0;
    for (const WidthPoint& point : points)
        low = std::min(low, point.loss_delta), high = std::max(high, point.loss_delta);
    if (high <= low) high = low + 1e-6;
    const auto narrow = static_cast<double>(points.front().ffn_width);
    const auto wide = static_cast<double>(points.back().ffn_width);
    const double pad = std::max((wide - narrow) * 0.04, 1.0);
    const Box box{62, 28, 480, 190};
    const Plot plot{box,
                    {narrow - pad, wide + pad, box.x, box.right()},
                    {low < 0 ? low * 1.1 : 0, high * 1.06, box.bottom(), box.y}};
    Svg svg(
        560, 270,
        fmt::format("Loss increase by FFN width: {} at {}, {} at {}", value_text(points.front().loss_delta),
                    points.front().ffn_width, value_text(points.back().loss_delta), points.back().ffn_width));
    draw_y_axis(svg, plot, "loss increase (nats per token)");
    draw_x_axis(svg, plot, "FFN width of every FFN layer", 6);
    std::vector<Point> line;
    for (const WidthPoint& point : points)
        line.push_back(plot.at(static_cast<double>(point.ffn_width), point.loss_delta));
    svg.polyline(line, "smooth width-line");
    for (std::size_t i = 0; i < points.size(); ++i)
        svg.circle(line[i], 3.5, "dot width-line",
                   fmt::format("width {}: {}", points[i].ffn_width, value_text(points[i].loss_delta)));
    return svg.finish();
}

}  // namespace minipuzzle::report
