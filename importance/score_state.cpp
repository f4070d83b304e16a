#include "importance/score_state.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <tuple>

#include "runtime/artefact.h"
#include "runtime/files.h"

namespace minipuzzle::importance {

namespace {

constexpr const char* kFormat = "minipuzzle.score-state/2";

constexpr std::pair<const char*, std::vector<double> SequenceMetrics::*> kMembers[] = {
    {"loss", &SequenceMetrics::loss},
    {"accuracy", &SequenceMetrics::accuracy},
    {"kl", &SequenceMetrics::kl},
    {"top1_agreement", &SequenceMetrics::top1_agreement},
    {"hidden_mse", &SequenceMetrics::hidden_mse},
    {"logit_nmse", &SequenceMetrics::logit_nmse},
    {"cosine", &SequenceMetrics::cosine}};

// Metrics that a stage does not keep are left out.
Json to_json(const SequenceMetrics& metrics) {
    Json json = Json::object();
    for (const auto& [name, member] : kMembers)
        if (!(metrics.*member).empty()) json[name] = metrics.*member;
    return json;
}

SequenceMetrics metrics_from(const Json& json) {
    SequenceMetrics metrics;
    for (const auto& [name, member] : kMembers)
        if (json.contains(name)) metrics.*member = json[name].get<std::vector<double>>();
    return metrics;
}

SweepResult result_from(const Json& json) {
    SweepResult result;
    result.tokens = json.at("tokens").get<std::vector<int64_t>>();
    result.base = metrics_from(json.at("base"));
    for (const Json& variant : json.at("variants")) result.variants.push_back(metrics_from(variant));
    return result;
}

SequenceMetrics single_window(const SequenceMetrics& metrics, std::size_t i) {
    SequenceMetrics single;
    for (const auto& [name, member] : kMembers)
        if (!(metrics.*member).empty()) single.*member = {(metrics.*member).at(i)};
    return single;
}

SweepResult single_window(const SweepResult& result, std::size_t i) {
    SweepResult single{
        .tokens = {result.tokens.at(i)}, .base = single_window(result.base, i), .variants = {}};
    for (const SequenceMetrics& variant : result.variants)
        single.variants.push_back(single_window(variant, i));
    return single;
}

// One line, on disk before this returns; a line that could not be written whole is taken back.
void append_line(const std::filesystem::path& path, const std::string& line) {
    const int file = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    if (file < 0) fail_writing(path, errno);
    const off_t end = ::lseek(file, 0, SEEK_END);
    std::size_t written = 0;
    while (written < line.size()) {
        const ssize_t count = ::write(file, line.data() + written, line.size() - written);
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) break;
        written += static_cast<std::size_t>(count);
    }
    const bool ok = written == line.size() && ::fsync(file) == 0;
    const int error = errno;
    // A cut line that cannot be taken back is dropped when the state is opened again.
    if (!ok) std::ignore = ::ftruncate(file, end);
    ::close(file);
    if (!ok) fail_writing(path, error);
}

}  // namespace

ScoreState::ScoreState(const std::filesystem::path& path, const std::string& identity, bool resume)
    : path_(path) {
    if (path_.empty()) return;
    if (resume && std::filesystem::exists(path_)) {
        read_finished(identity);
        return;
    }
    start(identity);
}

void ScoreState::start(const std::string& identity) {
    remove(path_);
    append_line(path_, Json{{"format", kFormat}, {"identity", identity}}.dump() + "\n");
}

std::filesystem::path ScoreState::width_path(const std::filesystem::path& path) {
    return path.empty() ? path : std::filesystem::path(path.string() + ".width");
}

void ScoreState::remove(const std::filesystem::path& path) {
    const std::filesystem::path width = width_path(path);
    std::filesystem::remove(width);
    std::filesystem::remove(width.string() + ".partial");  // as a kill in mid-write leaves it
    std::filesystem::remove(path);
}

void ScoreState::read_finished(const std::string& identity) {
    const std::string text = read_file(path_);
    std::size_t begin = 0;
    bool first = true;
    for (std::size_t end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
        try {
            const Json line = Json::parse(text.substr(begin, end - begin));
            if (first && (line.at("format") != kFormat || line.at("identity") != identity))
                fail_input(
                    fmt::format("{}: this unfinished run had another model, data or options: repeat them to "
                                "resume, or leave out --resume to start anew",
                                path_.string()));
            if (!first) {
                const auto windows = line.at("windows").get<std::vector<int64_t>>();
                const SweepResult result = result_from(line);
                for (std::size_t i = 0; i < windows.size(); ++i)
                    finished_[line.at("stage").get<std::string>()][windows[i]] = single_window(result, i);
            }
        } catch (const Json::exception&) {
            fail_input(fmt::format(
                "{}: found a damaged line, expected a state of an unfinished score run: leave out "
                "--resume to start anew",
                path_.string()));
        }
        first = false;
    }
    if (first) {
        start(identity);
    } else {
        std::filesystem::resize_file(path_, begin);
    }
}

const SweepResult* ScoreState::find(const std::string& stage, int64_t window) const {
    const auto of_stage = finished_.find(stage);
    if (of_stage == finished_.end()) return nullptr;
    const auto found = of_stage->second.find(window);
    return found == of_stage->second.end() ? nullptr : &found->second;
}

void ScoreState::add(const std::string& stage, const std::vector<int64_t>& windows,
                     const SweepResult& result) {
    if (path_.empty()) return;
    Json line{
        {"stage", stage}, {"windows", windows}, {"tokens", result.tokens}, {"base", to_json(result.base)}};
    line["variants"] = Json::array();
    for (const SequenceMetrics& variant : result.variants) line["variants"].push_back(to_json(variant));
    append_line(path_, line.dump() + "\n");
}

}  // namespace minipuzzle::importance
