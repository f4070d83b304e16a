#include "cli/steps.h"

#include <algorithm>

#include "runtime/files.h"

namespace minipuzzle::cli {
namespace {

namespace fs = std::filesystem;

// Hidden files (markers, resumable state) are no part of a folder's content.
std::vector<fs::path> visible_files(const fs::path& folder) {
    std::vector<fs::path> files;
    for (auto it = fs::recursive_directory_iterator(folder); it != fs::recursive_directory_iterator(); ++it) {
        if (it->path().filename().string().front() == '.') {
            if (it->is_directory()) it.disable_recursion_pending();
        } else if (it->is_regular_file()) {
            files.push_back(it->path());
        }
    }
    std::sort(files.begin(), files.end());
    return files;
}

std::string content_hash(const std::vector<fs::path>& paths) {
    std::string list;
    for (const fs::path& path : paths) {
        if (!fs::is_directory(path)) {
            list +=
                path.filename().string() + " " + (fs::exists(path) ? sha256_of_file(path) : "absent") + "\n";
            continue;
        }
        for (const fs::path& file : visible_files(path))
            list += fs::relative(file, path).string() + " " + sha256_of_file(file) + "\n";
    }
    return sha256(list);
}

}  // namespace

StepLog::StepLog(const fs::path& folder) : path_(folder / ".steps.json"), steps_(Json::object()) {
    if (fs::exists(path_)) steps_ = read_json(path_);
}

std::string StepLog::key_of(const Json& options, const StepFiles& files) {
    return sha256(std::string(version()) + "\n" + options.dump() + "\n" + content_hash(files.inputs));
}

bool StepLog::finished(const std::string& step, const std::string& key, const StepFiles& files) const {
    const Json entry = steps_.value(step, Json::object());
    return entry.value("key", "") == key && entry.contains("outputs") && entry["outputs"].is_string() &&
           entry["outputs"].get<std::string>() == content_hash(files.outputs);
}

bool StepLog::begun(const std::string& step, const std::string& key) const {
    const Json entry = steps_.value(step, Json::object());
    return entry.value("key", "") == key && entry["outputs"].is_null();
}

void StepLog::begin(const std::string& step, const std::string& key) {
    steps_[step] = {{"key", key}, {"outputs", nullptr}};
    write();
}

void StepLog::finish(const std::string& step, const std::string& key, const StepFiles& files) {
    steps_[step] = {{"key", key}, {"outputs", content_hash(files.outputs)}};
    write();
}

void StepLog::write() const { write_file_atomically(path_, pretty(steps_)); }

}  // namespace minipuzzle::cli
