#include "distill/run_log.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>

#include "kernels/check.h"
#include "runtime/files.h"

namespace minipuzzle::distill {
namespace {

constexpr const char* kFormat = "minipuzzle.run/1";

std::string header_line(const RunHeader& header) {
    Json json = artefact_header(kFormat, header.provenance);
    json["device"] = header.device;
    json["options"] = header.options;
    return json.dump() + "\n";
}

std::string step_line(const RunStep& step) {
    const auto or_null = [](const std::optional<double>& value) { return value ? Json(*value) : Json(); };
    Json json;
    json["step"] = step.step;
    json["tokens"] = step.tokens;
    json["loss"] = step.loss;
    json["kl"] = or_null(step.kl);
    json["ce"] = or_null(step.ce);
    json["feature"] = or_null(step.feature);
    if (step.reverse_kl) json["reverse_kl"] = *step.reverse_kl;
    json["lr"] = step.lr;
    json["grad_norm"] = or_null(step.grad_norm);
    json["skipped"] = step.skipped;
    json["tokens_per_second"] = step.tokens_per_second;
    json["tflops"] = or_null(step.tflops);
    json["limit_share"] = or_null(step.limit_share);
    json["peak_bytes"] = step.peak_bytes;
    return json.dump() + "\n";
}

RunHeader parse_header(const Json& json, const std::string& where) {
    ObjectReader reader(json, where);
    RunHeader header;
    header.provenance = reader.header(kFormat);
    header.device = reader.text("device");
    header.options = reader.required("options");
    reader.finish();
    return header;
}

RunStep parse_step(const Json& json, const std::string& where) {
    ObjectReader reader(json, where);
    RunStep step;
    step.step = reader.integer("step");
    step.tokens = reader.integer("tokens");
    step.loss = reader.number("loss");
    step.kl = reader.optional_number("kl");
    step.ce = reader.optional_number("ce");
    step.feature = reader.optional_number("feature");
    step.reverse_kl = reader.optional_number("reverse_kl");
    step.lr = reader.number("lr");
    step.grad_norm = reader.optional_number("grad_norm");
    step.skipped = reader.integer("skipped", 0);
    step.tokens_per_second = reader.number("tokens_per_second");
    step.tflops = reader.optional_number("tflops");
    step.limit_share = reader.optional_number("limit_share");
    step.peak_bytes = reader.integer("peak_bytes");
    reader.finish();
    return step;
}

// The whole lines of a log, without their newlines.
std::vector<std::string_view> whole_lines(std::string_view text) {
    std::vector<std::string_view> lines;
    for (std::size_t end = text.find('\n'); end != text.npos; end = text.find('\n')) {
        lines.push_back(text.substr(0, end));
        text.remove_prefix(end + 1);
    }
    return lines;
}

Json parse_line(std::string_view line, const std::string& where) {
    Json json = Json::parse(line, nullptr, false);
    if (json.is_discarded() || !json.is_object())
        fail_input(
            fmt::format("{}expected a JSON object on a line of its own; remove the line or the file", where));
    return json;
}

}  // namespace

RunLog read_run_log(const std::filesystem::path& path) {
    const std::string text = read_file(path);
    const std::vector<std::string_view> lines = whole_lines(text);
    if (lines.empty())
        fail_input(fmt::format("{}: empty; expected a {} header line", path.string(), kFormat));
    const auto where = [&](std::size_t line) { return fmt::format("{}:{}: ", path.string(), line + 1); };
    RunLog log;
    log.header = parse_header(parse_line(lines[0], where(0)), where(0));
    for (std::size_t i = 1; i < lines.size(); ++i) {
        log.steps.push_back(parse_step(parse_line(lines[i], where(i)), where(i)));
        if (log.steps.back().step != static_cast<int64_t>(i))
            fail_input(fmt::format("{}found step {}, expected {}", where(i), log.steps.back().step, i));
    }
    return log;
}

RunLogWriter::RunLogWriter(const std::filesystem::path& path, const RunHeader& header) : path_(path) {
    write_file_atomically(path, header_line(header));
    file_ = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
    if (file_ < 0) fail_writing(path_, errno);
}

RunLogWriter::RunLogWriter(const std::filesystem::path& path, int64_t last_step) : path_(path) {
    const RunLog log = read_run_log(path);
    if (static_cast<int64_t>(log.steps.size()) < last_step)
        fail_input(fmt::format("{}: ends at step {}, the saved state is of step {}; start the run anew",
                               path.string(), log.steps.size(), last_step));
    const std::string text = read_file(path);
    const std::vector<std::string_view> lines = whole_lines(text);
    const std::string_view last = lines[static_cast<std::size_t>(last_step)];
    const auto length = static_cast<off_t>(last.data() + last.size() + 1 - text.data());
    file_ = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
    if (file_ < 0 || ::ftruncate(file_, length) != 0) fail_writing(path_, errno);
}

RunLogWriter::~RunLogWriter() {
    if (file_ >= 0) ::close(file_);
}

void RunLogWriter::append(const RunStep& step) { write_line(step_line(step)); }

void RunLogWriter::flush() {
    if (::fsync(file_) != 0) fail_writing(path_, errno);
}

void RunLogWriter::write_line(const std::string& line) {
    const ssize_t written = ::write(file_, line.data(), line.size());
    if (written == static_cast<ssize_t>(line.size())) return;
    if (written >= 0) errno = ENOSPC;  // a short write to a regular file: the disk is full
    fail_writing(path_, errno);
}

}  // namespace minipuzzle::distill
