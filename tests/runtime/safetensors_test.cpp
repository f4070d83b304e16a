#include "runtime/safetensors.h"

#include <fmt/format.h>

#include <cmath>
#include <fstream>
#include <limits>

#include "kernels/check.h"
#include "runtime/artefact.h"
#include "tests/catch.h"
#include "tests/support/errors.h"
#include "tests/support/raw_safetensors.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"

using namespace minipuzzle;
using namespace minipuzzle::test;
using Catch::Matchers::Contains;

namespace {

// What opening a file with this header and 8 bytes of data says.
std::string error_for(const std::string& header, const std::string& data = "01234567") {
    const TempDir dir;
    const auto file = dir.write("bad.safetensors", raw_safetensors(header, data));
    const std::string what = bad_input([&] { SafetensorsFile opened(file); });
    CHECK_THAT(what, Contains("bad.safetensors"));
    return what;
}

std::string entry(const char* name, const char* dtype, const char* shape, const char* offsets) {
    return fmt::format(R"("{}":{{"dtype":"{}","shape":{},"data_offsets":{}}})", name, dtype, shape, offsets);
}

// A header of these entries.
std::string object(std::initializer_list<std::string> entries) {
    return fmt::format("{{{}}}", fmt::join(entries, ","));
}

std::vector<std::byte> bytes_of_text(const std::string& text) {
    const auto span = std::as_bytes(std::span(text));
    return {span.begin(), span.end()};
}

}  // namespace

TEST_CASE("a crafted file is read") {
    const TempDir dir;
    const std::string header =
        object({R"("__metadata__":{"format":"pt"})", entry("b", "F32", "[1]", "[4,8]"),
                entry("empty", "F32", "[0,3]", "[4,4]"), entry("a", "BF16", "[2,1]", "[0,4]"),
                entry("scalar", "U8", "[]", "[8,9]")})
            .append("   ");
    const SafetensorsFile file(dir.write("f", raw_safetensors(header, "01234567z")));
    REQUIRE(file.tensors().size() == 4);
    CHECK(file.tensors()[0].name == "a");
    CHECK(file.tensors()[1].name == "empty");
    CHECK(file.tensors()[2].name == "b");
    CHECK(file.find("empty")->elements() == 0);
    CHECK(file.find("scalar")->elements() == 1);
    CHECK(file.find("scalar")->bytes[0] == std::byte{'z'});
    CHECK(file.find("none") == nullptr);
    CHECK(file.metadata().at("format") == "pt");
    CHECK(file.header().size() == header.size());
}

TEST_CASE("data that a foreign writer left misaligned is read") {
    const TempDir dir;
    const std::string header =
        object({entry("byte", "U8", "[1]", "[0,1]"), entry("x", "F32", "[2]", "[1,9]")});
    std::string data = "z";
    const float values[2] = {1.5f, -2.25f};
    data.append(reinterpret_cast<const char*>(values), sizeof values);
    const SafetensorsFile file(dir.write("f", raw_safetensors(header, data)));
    float read[2];
    read_as_float(*file.find("x"), read);
    CHECK(read[0] == 1.5f);
    CHECK(read[1] == -2.25f);
}

TEST_CASE("files that are no safetensors files are refused") {
    const TempDir dir;
    const auto said = [&](const std::string& content) {
        const auto path = dir.write("bad.safetensors", content);
        return bad_input([&] { SafetensorsFile file(path); });
    };
    CHECK_THAT(said(""), Contains("too short"));
    CHECK_THAT(said("1234567"), Contains("too short"));
    CHECK_THAT(said(raw_safetensors("{}", "", 3)), Contains("claims 3 bytes"));
    CHECK_THAT(said(raw_safetensors("{}", "", 200'000'000)), Contains("claims 200000000 bytes"));
    CHECK_THAT(said(raw_safetensors("{}", "", std::numeric_limits<uint64_t>::max())), Contains("claims"));
    CHECK_THAT(said(raw_safetensors("{}", "x")), Contains("has 1 bytes of data, but its tensors cover 0"));
    CHECK_THAT(said(raw_safetensors("not json", "")), Contains("not valid JSON"));
    CHECK_THAT(said(raw_safetensors("[]", "")), Contains("not an object"));
    CHECK_THAT(bad_input([&] { SafetensorsFile file(dir / "none"); }), Contains("no such file"));
}

TEST_CASE("headers that contradict themselves or their data are refused") {
    const auto a = [](const char* dtype, const char* shape, const char* offsets) {
        return error_for(object({entry("a", dtype, shape, offsets)}));
    };
    CHECK_THAT(a("F33", "[2]", "[0,8]"), Contains("\"a\"") && Contains("dtype \"F33\" is unknown"));
    CHECK_THAT(a("F32", "[-2]", "[0,8]"), Contains("-2"));
    CHECK_THAT(a("F32", "[2.5]", "[0,8]"), Contains("2.5"));
    CHECK_THAT(a("F32", "[\"2\"]", "[0,8]"), Contains("whole numbers"));
    CHECK_THAT(a("F32", "2", "[0,8]"), Contains("shape"));
    CHECK_THAT(a("F32", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,2]", "[0,8]"), Contains("shape"));
    CHECK_THAT(a("F32", "[3]", "[0,8]"), Contains("holds 8 bytes") && Contains("needs 12"));
    CHECK_THAT(a("F32", "[2]", "[0,12]"), Contains("8 bytes of data"));
    CHECK_THAT(a("F32", "[2]", "[8,0]"), Contains("[8, 0]"));
    CHECK_THAT(a("F32", "[2]", "[0]"), Contains("pair"));
    CHECK_THAT(a("F32", "[2]", "[-8,0]"), Contains("pair"));
    CHECK_THAT(a("F32", "[2]", "[0,18446744073709551616]"), Contains("pair"));
    CHECK_THAT(a("F32", "[4611686018427387904,4]", "[0,8]"), Contains("overflows"));
    CHECK_THAT(a("F32", "[9223372036854775807,9223372036854775807]", "[0,8]"), Contains("overflows"));
    CHECK_THAT(a("F32", "[18446744073709551615]", "[0,8]"), Contains("whole numbers"));
    CHECK_THAT(a("F32", "[1]", "[0,4]"), Contains("has 8 bytes of data, but its tensors cover 4"));
    CHECK_THAT(a("F32", "[1]", "[4,8]"), Contains("begins at byte 4") && Contains("expected 0"));
    CHECK_THAT(error_for("{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}"), Contains("data_offsets"));
    CHECK_THAT(error_for("{\"a\":3}"), Contains("expected an object"));
    const std::string whole = entry("a", "F32", "[2]", "[0,8]");
    CHECK_THAT(error_for(object({R"("__metadata__":{"x":1})", whole})), Contains("__metadata__"));
    CHECK_THAT(error_for(object({R"("__metadata__":[])", whole})), Contains("__metadata__"));
    const std::string one = entry("a", "F32", "[1]", "[0,4]"), two = entry("a", "F32", "[1]", "[4,8]");
    CHECK_THAT(error_for(object({one, two})), Contains("\"a\" appears twice"));
    CHECK_THAT(error_for(object({one, entry("b", "F32", "[1]", "[0,4]")})), Contains("overlap"));
    CHECK_THAT(error_for(object({entry("a", "U8", "[3]", "[0,3]"), entry("b", "U8", "[4]", "[4,8]")})),
               Contains("\"b\"") && Contains("begins at byte 4") && Contains("expected 3"));
}

TEST_CASE("an empty tensor may claim any shape without overflow") {
    const TempDir dir;
    const std::string header =
        object({entry("a", "F32", "[9223372036854775807,9223372036854775807,0]", "[0,0]")});
    CHECK(SafetensorsFile(dir.write("f", raw_safetensors(header, ""))).tensors()[0].elements() == 0);
}

TEST_CASE("what is written is read back, aligned") {
    const TempDir dir;
    const std::vector<std::byte> odd = bytes_of_text("abcdef"), words = bytes_of_text("0123456789abcdef");
    const std::vector<StoredTensor> tensors = {{"odd", DType::bf16, {3}, odd},
                                               {"byte", DType::u8, {6}, odd},
                                               {"x", DType::f32, {2, 2}, words},
                                               {"y \"quoted\"", DType::f64, {2}, words},
                                               {"none", DType::f32, {0}, {}}};
    write_safetensors(dir / "f", tensors, {{"made", "here"}});
    const SafetensorsFile file(dir / "f");
    CHECK(file.metadata() == std::map<std::string, std::string>{{"made", "here"}});
    CHECK((8 + file.header().size()) % 8 == 0);
    REQUIRE(file.tensors().size() == tensors.size());
    for (const StoredTensor& tensor : tensors) {
        INFO(tensor.name);
        const StoredTensor* back = file.find(tensor.name);
        REQUIRE(back);
        CHECK(back->dtype == tensor.dtype);
        CHECK(back->shape == tensor.shape);
        CHECK(std::equal(back->bytes.begin(), back->bytes.end(), tensor.bytes.begin(), tensor.bytes.end()));
        const auto offset = back->bytes.data() - file.content().data();
        CHECK(offset % bytes_of(tensor.dtype) == 0);
    }
    write_safetensors(dir / "g", {});
    CHECK(SafetensorsFile(dir / "g").tensors().empty());
}

TEST_CASE("elements convert to float and back") {
    const std::vector<float> values = {
        0.0f, -0.0f, 1.0f, -2.5f, 1e-3f, 65504.0f, std::numeric_limits<float>::infinity()};
    for (DType dtype : {DType::f64, DType::f32, DType::f16, DType::bf16}) {
        INFO(info(dtype).name);
        const std::vector<std::byte> bytes = to_dtype(values, dtype);
        const StoredTensor tensor{"t", dtype, {std::ssize(values)}, bytes};
        std::vector<float> back(values.size());
        read_as_float(tensor, back);
        // Once rounded, a value is kept exactly.
        CHECK(to_dtype(back, dtype) == bytes);
        for (std::size_t i = 0; i < values.size(); ++i) {
            // Half an ulp of bf16's 8 significant bits is the coarsest of the four.
            if (std::isfinite(values[i]))
                CHECK(std::abs(back[i] - values[i]) <= std::abs(values[i]) * 0x1p-8f);
            if (!std::isfinite(values[i])) CHECK(back[i] == values[i]);
        }
        CHECK(std::signbit(back[1]));
    }
    const StoredTensor whole{"w", DType::i8, {1}, bytes_of_text("x")};
    float out[1];
    CHECK_THAT(bad_input([&] { read_as_float(whole, out); }), Contains("\"w\" has dtype I8"));
}

TEST_CASE("mutated files never do worse than an error") {
    const TempDir dir;
    const std::vector<std::byte> words = bytes_of_text("0123456789abcdef");
    write_safetensors(dir / "seed", {{"a", DType::f32, {2, 2}, words}, {"b", DType::bf16, {8}, words}},
                      {{"k", "v"}});
    const std::string original = read_file(dir / "seed");
    int opened = 0, refused = 0;
    for (uint64_t round = 0; round < 2000; ++round) {
        std::string mutant = original;
        const auto draw = [&](uint64_t index, std::size_t below) {
            return static_cast<std::size_t>(uniform(round, "mutation", index) * static_cast<double>(below));
        };
        for (std::size_t i = 0; i <= draw(0, 4); ++i) {
            const std::size_t at = draw(4 * i + 1, mutant.size());
            const std::size_t kind = draw(4 * i + 2, 4);
            // Digits and punctuation reach deeper into the parser than random bytes.
            const char byte =
                kind == 0 ? static_cast<char>(draw(4 * i + 3, 256)) : "0129-[]{},:\"ef"[draw(4 * i + 3, 14)];
            if (kind <= 1) mutant[at] = byte;
            if (kind == 2) mutant.insert(at, 1, byte);
            if (kind == 3) mutant.erase(at, 1);
        }
        std::ofstream(dir / "mutant", std::ios::binary | std::ios::trunc) << mutant;
        try {
            const SafetensorsFile file(dir / "mutant");
            ++opened;
            for (const StoredTensor& tensor : file.tensors()) {
                std::size_t sum = 0;
                for (std::byte byte : tensor.bytes) sum += std::to_integer<std::size_t>(byte);
                CHECK(sum <= 255 * tensor.bytes.size());
            }
        } catch (const Error& error) {
            ++refused;
            CHECK(error.kind() == ErrorKind::bad_input);
        }
    }
    // Both must happen, or the mutations are too weak or too strong to say anything.
    CHECK(opened > 50);
    CHECK(refused > 500);
}
