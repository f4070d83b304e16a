#include "cli/split.h"

#include <fmt/format.h>

#include <array>
#include <map>

#include "kernels/check.h"
#include "runtime/files.h"

namespace minipuzzle::cli {
namespace {

namespace fs = std::filesystem;

struct Place {
    std::string file, part;
    std::size_t row = 0;
};

// A document as a line of JSONL, and what tells it from others.
struct Row {
    std::string line;
    uint64_t content_hash = 0;
};

std::vector<std::string> lines_of(const fs::path& file) {
    const std::string content = read_file(file);
    if (file.extension() == ".txt") return {Json{{"text", content}}.dump()};
    std::vector<std::string> lines;
    for (std::size_t begin = 0; begin < content.size();) {
        const std::size_t end = std::min(content.find('\n', begin), content.size());
        std::string line = content.substr(begin, end - begin);
        if (line.find_first_not_of(" \t\r") != std::string::npos) lines.push_back(std::move(line));
        begin = end + 1;
    }
    return lines;
}

std::vector<Row> rows_of(const std::vector<std::string>& files, const DataReader& reader) {
    std::vector<Row> rows;
    for (const std::string& file : files) {
        const Corpus corpus = reader.for_measuring({file});
        std::vector<std::string> lines = lines_of(file);
        MP_ASSERT(lines.size() == corpus.documents().size());
        for (std::size_t i = 0; i < lines.size(); ++i)
            rows.push_back({std::move(lines[i]), corpus.documents()[i].content_hash});
    }
    return rows;
}

}  // namespace

void check_disjoint(const RecipeData& data, const DataReader& reader) {
    std::map<uint64_t, Place> seen;
    const std::pair<const char*, const std::vector<std::string>*> parts[] = {
        {"calib", &data.calib}, {"select", &data.select}, {"train", &data.train}, {"test", &data.test}};
    for (const auto& [part, files] : parts)
        for (const std::string& file : *files) {
            const Corpus corpus = reader.for_measuring({file});
            for (std::size_t i = 0; i < corpus.documents().size(); ++i) {
                const Place place{file, part, i + 1};
                const auto [it, fresh] = seen.try_emplace(corpus.documents()[i].content_hash, place);
                if (!fresh && it->second.part != place.part)
                    fail_input(
                        fmt::format("one document stands in {} ({} row {}) and in {} ({} row {}): remove it "
                                    "from one of them",
                                    it->second.part, it->second.file, it->second.row, part, file, i + 1));
            }
        }
}

RecipeData split_documents(const std::vector<std::string>& files, const DataReader& reader, uint64_t seed,
                           const fs::path& out) {
    constexpr std::array<const char*, 4> kParts = {"calib", "select", "test", "train"};
    constexpr int64_t kShare = 10;  // a tenth to each but train
    const std::vector<Row> rows = rows_of(files, reader);
    std::map<uint64_t, std::vector<std::size_t>> copies;
    std::vector<uint64_t> documents;  // by first appearance
    for (std::size_t i = 0; i < rows.size(); ++i) {
        std::vector<std::size_t>& places = copies[rows[i].content_hash];
        if (places.empty()) documents.push_back(rows[i].content_hash);
        places.push_back(i);
    }
    const int64_t count = narrow<int64_t>(documents.size());
    if (count < narrow<int64_t>(kParts.size()))
        fail_input(fmt::format("found {} different documents, expected at least {} to split into {}", count,
                               kParts.size(), "calib, select, test and train"));

    const int64_t each = std::max<int64_t>(1, count / kShare);
    std::array<std::string, 4> content;
    const std::vector<int64_t> order = seeded_order(count, seed);
    for (int64_t i = 0; i < count; ++i) {
        const std::size_t part = std::min<std::size_t>(narrow<std::size_t>(i / each), kParts.size() - 1);
        for (std::size_t row : copies[documents[narrow<std::size_t>(order[narrow<std::size_t>(i)])]])
            content[part] += rows[row].line + "\n";
    }
    claim_folder(out);
    std::array<std::string, 4> written;
    for (std::size_t part = 0; part < kParts.size(); ++part) {
        written[part] = (out / "data" / (std::string(kParts[part]) + ".jsonl")).string();
        write_file_atomically(written[part], content[part]);
    }
    return {.calib = {written[0]}, .select = {written[1]}, .train = {written[3]}, .test = {written[2]}};
}

}  // namespace minipuzzle::cli
