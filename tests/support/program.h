// minipuzzle run as a process.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "tests/catch.h"
#include "tests/support/temp_dir.h"

namespace minipuzzle::test {

inline std::string content_of(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

// A started program; its output goes to files of `scratch`.
class Program {
  public:
    Program(const TempDir& scratch, const std::vector<std::string>& arguments)
        : out_(scratch / "stdout.txt"), err_(scratch / "stderr.txt") {
        pid_ = ::fork();
        if (pid_ < 0) throw std::runtime_error("fork failed");
        if (pid_ == 0) execute(arguments);
    }
    ~Program() {
        if (!waited_) {
            ::kill(pid_, SIGKILL);
            wait();
        }
    }
    Program(const Program&) = delete;
    Program& operator=(const Program&) = delete;

    void signal(int number) const { ::kill(pid_, number); }
    bool running() {
        if (waited_) return false;
        waited_ = ::waitpid(pid_, &status_, WNOHANG) == pid_;
        return !waited_;
    }
    // The exit code; 128 + the signal where one ended it.
    int wait() {
        if (!waited_) ::waitpid(pid_, &status_, 0);
        waited_ = true;
        return WIFEXITED(status_) ? WEXITSTATUS(status_) : 128 + WTERMSIG(status_);
    }
    std::string out() const { return content_of(out_); }
    std::string err() const { return content_of(err_); }

  private:
    [[noreturn]] void execute(const std::vector<std::string>& arguments) const {
        const int flags = O_CREAT | O_WRONLY | O_TRUNC;
        ::dup2(::open(out_.c_str(), flags, 0600), STDOUT_FILENO);
        ::dup2(::open(err_.c_str(), flags, 0600), STDERR_FILENO);
        std::vector<char*> argv{const_cast<char*>(MINIPUZZLE_PROGRAM)};
        for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
        argv.push_back(nullptr);
        ::execv(argv[0], argv.data());
        ::_exit(127);
    }
    std::filesystem::path out_, err_;
    pid_t pid_ = -1;
    int status_ = 0;
    bool waited_ = false;
};

struct Outcome {
    int code = 0;
    std::string out, err;
    nlohmann::json json() const { return nlohmann::json::parse(out); }
};

inline Outcome run(const std::vector<std::string>& arguments) {
    const TempDir scratch;
    Program program(scratch, arguments);
    const int code = program.wait();
    return {code, program.out(), program.err()};
}

// The result of a run that must succeed.
inline nlohmann::json run_json(std::vector<std::string> arguments) {
    arguments.push_back("--json");
    const Outcome outcome = run(arguments);
    INFO(outcome.err);
    REQUIRE(outcome.code == 0);
    return outcome.json();
}

// A run that must end as the user's error: exit code 2, one line on stderr that says `says`, nothing on
// stdout.
inline void refused(const std::vector<std::string>& arguments, const std::string& says) {
    const Outcome outcome = run(arguments);
    INFO(outcome.err);
    CHECK(outcome.code == 2);
    CHECK(outcome.out.empty());
    CHECK(outcome.err.find(says) != std::string::npos);
    CHECK(std::count(outcome.err.begin(), outcome.err.end(), '\n') == 1);
}

// The demo model that the project ships, and rows for it that need no tokenizer.
inline std::string demo_model() { return std::string(MINIPUZZLE_SOURCE_DIR) + "/configs/demo/model"; }

// `rows` documents of `length` token ids of the demo model's vocabulary; `salt` makes other documents.
inline std::string token_rows(int rows, int length, int salt = 0) {
    std::string text;
    for (int row = 0; row < rows; ++row) {
        nlohmann::json tokens = nlohmann::json::array();
        for (int i = 0; i < length; ++i)
            tokens.push_back(3 + (i * i * 31 + i * (row + 7) + row * 131 + salt * 17) % 2000);
        text += nlohmann::json{{"tokens", tokens}, {"source", row % 2 ? "odd" : "even"}}.dump() + "\n";
    }
    return text;
}

// Every file of a folder with its content, hidden ones left out.
inline std::vector<std::pair<std::string, std::string>> files_of(const std::filesystem::path& folder) {
    std::vector<std::pair<std::string, std::string>> files;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder))
        if (entry.is_regular_file() && entry.path().filename().string().front() != '.')
            files.push_back(
                {std::filesystem::relative(entry.path(), folder).string(), content_of(entry.path())});
    std::sort(files.begin(), files.end());
    return files;
}

}  // namespace minipuzzle::test
