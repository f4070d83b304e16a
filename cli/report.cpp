// minipuzzle report
#include <fmt/format.h>

#include <filesystem>

#include "cli/commands.h"
#include "cli/model_loading.h"
#include "cli/report/page.h"
#include "runtime/files.h"

namespace minipuzzle::cli {

OptionTable ReportCommand::options() {
    OptionTable table;
    table.positional("folder", folder,
                     "what run, search or score left: scores, search, run logs, evaluations");
    table.text("out", "FILE.html", out, "the page; FOLDER/report.html by default");
    return table;
}

CommandResult ReportCommand::run(const Context& context) {
    require_option(*this, "folder", !folder.empty());
    const std::filesystem::path page =
        out.empty() ? std::filesystem::path(folder) / "report.html" : std::filesystem::path(out);
    const report::ReportInputs inputs = report::read_report_inputs(folder);
    check_output_file(page);
    for (const std::string& file : inputs.left_aside) context.console.note("left aside: " + file);
    const std::string html = report::report_page(inputs);
    write_file_atomically(page, html);
    Json sources = Json::array();
    for (const report::SourceFile& source : inputs.sources) sources.push_back(source.path);
    return {.json = {{"out", page.string()}, {"bytes", html.size()}, {"sources", sources}},
            .text = fmt::format("wrote {} ({} bytes)\n", page.string(), html.size())};
}

}  // namespace minipuzzle::cli
