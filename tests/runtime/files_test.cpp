#include "runtime/files.h"

#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kernels/check.h"
#include "tests/catch.h"
#include "tests/support/errors.h"
#include "tests/support/temp_dir.h"

using namespace minipuzzle;
using namespace minipuzzle::test;
using Catch::Matchers::Contains;
namespace fs = std::filesystem;

namespace {

// While it lives no file may grow beyond `bytes`: what a full disk looks like to a writer.
class FileSizeLimit {
  public:
    explicit FileSizeLimit(rlim_t bytes) {
        ::getrlimit(RLIMIT_FSIZE, &old_);
        old_handler_ = ::signal(SIGXFSZ, SIG_IGN);
        const rlimit limit{bytes, old_.rlim_max};
        ::setrlimit(RLIMIT_FSIZE, &limit);
    }
    ~FileSizeLimit() {
        ::setrlimit(RLIMIT_FSIZE, &old_);
        ::signal(SIGXFSZ, old_handler_);
    }

  private:
    rlimit old_{};
    void (*old_handler_)(int) = nullptr;
};

// A file system of 64 KiB, where the test may mount one.
class TinyDisk {
  public:
    TinyDisk() : mounted_(::mount("tmpfs", dir_.path().c_str(), "tmpfs", 0, "size=64k") == 0) {}
    ~TinyDisk() {
        if (mounted_) ::umount2(dir_.path().c_str(), MNT_DETACH);
    }
    bool mounted() const { return mounted_; }
    fs::path operator/(const std::string& name) const { return dir_ / name; }

  private:
    TempDir dir_;
    bool mounted_;
};

std::vector<std::string> names_in(const fs::path& folder) {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder))
        names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
}

void write_big(const fs::path& partial) {
    FileWriter file(partial / "big");
    file.write(std::string(200'000, 'x'));
    file.finish();
}

}  // namespace

TEST_CASE("SHA-256 of the standard's examples") {
    CHECK(sha256(std::string("")) ==
          "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK(sha256(std::string("abc")) ==
          "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    CHECK(sha256(std::string("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq")) ==
          "sha256:248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    CHECK(sha256(std::string(1'000'000, 'a')) ==
          "sha256:cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST_CASE("SHA-256 does not depend on how the bytes arrive") {
    std::string text;
    for (int i = 0; i < 300; ++i) text += static_cast<char>(i * 7);
    for (std::size_t length = 0; length <= text.size(); ++length)
        for (std::size_t piece : {1, 3, 63, 64, 65}) {
            Sha256 hash;
            for (std::size_t at = 0; at < length; at += piece)
                hash.update(text.substr(at, std::min(piece, length - at)));
            REQUIRE(hash.digest() == sha256(text.substr(0, length)));
        }
}

TEST_CASE("files are read whole or refused") {
    const TempDir dir;
    const std::string content("a\0b\xff\n", 5);
    const fs::path file = dir.write("file", content);
    CHECK(read_file(file) == content);
    CHECK(sha256_of_file(file) == sha256(content));
    CHECK(MappedFile(file).bytes().size() == 5);
    CHECK(MappedFile(dir.write("empty", "")).bytes().empty());
    CHECK_THAT(bad_input([&] { read_file(dir / "none"); }), Contains("none: no such file"));
    CHECK_THAT(bad_input([&] { read_file(dir.path()); }), Contains("cannot be read"));
    CHECK_THAT(bad_input([&] { MappedFile mapped(dir / "none"); }), Contains("no such file"));
    CHECK_THAT(bad_input([&] { MappedFile mapped(dir.path()); }), Contains("not a regular file"));
}

TEST_CASE("a mapping moves with its owner") {
    const TempDir dir;
    MappedFile first(dir.write("a", "one"));
    MappedFile second(std::move(first));
    CHECK(first.bytes().empty());
    CHECK(second.bytes().size() == 3);
    first = std::move(second);
    CHECK(first.bytes().size() == 3);
}

TEST_CASE("a file is replaced at once or not at all") {
    const TempDir dir;
    const fs::path file = dir / "new/folder/file.json";
    write_file_atomically(file, "one");
    write_file_atomically(file, "two");
    CHECK(read_file(file) == "two");
    CHECK(names_in(file.parent_path()) == std::vector<std::string>{"file.json"});
    CHECK_THAT(bad_input([&] { write_file_atomically(dir.path(), "x"); }), Contains("cannot be written"));
    CHECK_THAT(bad_input([&] { write_file_atomically(file / "below", "x"); }), Contains("cannot be written"));
    CHECK_FALSE(fs::exists(dir.path().string() + ".partial"));
}

TEST_CASE("a file that cannot grow leaves the old one and no litter") {
    const TempDir dir;
    const fs::path file = dir / "file";
    write_file_atomically(file, "old");
    {
        const FileSizeLimit limit(1000);
        const std::string what =
            error_of(ErrorKind::other, [&] { write_file_atomically(file, std::string(5000, 'x')); });
        CHECK_THAT(what, Contains("cannot be written"));
        error_of(ErrorKind::other, [&] { write_folder_atomically(dir / "folder", write_big); });
    }
    CHECK(read_file(file) == "old");
    CHECK(names_in(dir.path()) == std::vector<std::string>{"file"});
}

TEST_CASE("a full disk is said to be full") {
    const TinyDisk disk;
    if (!disk.mounted()) {
        WARN("this user may not mount a small file system; the case of a size limit stands for it");
        return;
    }
    write_file_atomically(disk / "file", "old");
    const std::string what =
        error_of(ErrorKind::other, [&] { write_file_atomically(disk / "file", std::string(200'000, 'x')); });
    CHECK_THAT(what, Contains("disk full") && Contains("file.partial"));
    CHECK_THAT(error_of(ErrorKind::other, [&] { write_folder_atomically(disk / "folder", write_big); }),
               Contains("disk full"));
    CHECK(read_file(disk / "file") == "old");
    CHECK(names_in(disk / "") == std::vector<std::string>{"file"});
}

TEST_CASE("a folder appears whole, and only ours is replaced") {
    const TempDir dir;
    const fs::path folder = dir / "out/model";
    const auto write_one = [](const char* name) {
        return [name](const fs::path& partial) { write_file_atomically(partial / name, name); };
    };
    write_folder_atomically(folder, write_one("first"));
    CHECK(names_in(folder) == std::vector<std::string>{kOutputMarker, "first"});
    write_folder_atomically(folder.string() + "/", write_one("second"));
    CHECK(names_in(folder) == std::vector<std::string>{kOutputMarker, "second"});
    CHECK(names_in(dir / "out") == std::vector<std::string>{"model"});

    // A failure keeps what was there and leaves nothing beside it.
    const auto fail = [](const fs::path& partial) {
        write_file_atomically(partial / "half", "x");
        fail_input("no more");
    };
    CHECK(bad_input([&] { write_folder_atomically(folder, fail); }) == "no more");
    CHECK(names_in(folder) == std::vector<std::string>{kOutputMarker, "second"});
    CHECK(names_in(dir / "out") == std::vector<std::string>{"model"});

    fs::create_directory(dir / "empty");
    write_folder_atomically(dir / "empty", write_one("third"));
    CHECK(fs::exists(dir / "empty/third"));

    dir.write("foreign/precious", "x");
    CHECK_THAT(bad_input([&] { write_folder_atomically(dir / "foreign", write_one("a")); }),
               Contains("exists and is not ours"));
    CHECK(read_file(dir / "foreign/precious") == "x");
    dir.write("plain", "x");
    CHECK_THAT(bad_input([&] { write_folder_atomically(dir / "plain", write_one("a")); }),
               Contains("not a folder"));
    // What an interrupted run left is replaced, somebody else's folder of that name is not.
    dir.write("next.partial/precious", "x");
    CHECK_THAT(bad_input([&] { write_folder_atomically(dir / "next", write_one("a")); }),
               Contains("next.partial"));
    dir.write(std::string("next.partial/") + kOutputMarker, "");
    write_folder_atomically(dir / "next", write_one("a"));
    CHECK(names_in(dir / "next") == std::vector<std::string>{kOutputMarker, "a"});
}

TEST_CASE("a folder behind a link is replaced where it is") {
    const TempDir dir;
    claim_folder(dir / "real");
    fs::create_directory_symlink(dir / "real", dir / "link");
    write_folder_atomically(dir / "link",
                            [](const fs::path& partial) { write_file_atomically(partial / "a", "a"); });
    CHECK(fs::is_symlink(dir / "link"));
    CHECK(fs::exists(dir / "real/a"));
}

TEST_CASE("a growing folder is claimed once") {
    const TempDir dir;
    claim_folder(dir / "run");
    write_file_atomically(dir / "run/run.jsonl", "x");
    claim_folder(dir / "run");
    CHECK(fs::exists(dir / "run/run.jsonl"));
    dir.write("foreign/precious", "x");
    CHECK_THAT(bad_input([&] { claim_folder(dir / "foreign"); }), Contains("exists and is not ours"));
}
