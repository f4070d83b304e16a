#include "cli/units.h"

#include "tests/catch.h"
#include "tests/support/errors.h"

namespace minipuzzle::cli {
namespace {

using test::error_of;

template <class Call>
std::string usage(Call call) {
    return error_of(ErrorKind::usage, call);
}

TEST_CASE("sizes: decimal and binary units, fractions cut to whole bytes") {
    CHECK(parse_bytes("31.7GiB") == 34037615820);  // 31.7 * 2^30 = 34037615820.8
    CHECK(parse_bytes("24GB") == 24000000000);
    CHECK(parse_bytes("1.5 MiB") == 1572864);
    CHECK(parse_bytes("2kB") == 2000);
    CHECK(parse_bytes("17") == 17);
    CHECK(parse_bytes("17B") == 17);
    CHECK(parse_bytes("0.1kB") == 100);
}

TEST_CASE("counts: k, M, B decimal, Ki, Mi binary, whole numbers only") {
    CHECK(parse_count("120k") == 120000);
    CHECK(parse_count("1.5M") == 1500000);
    CHECK(parse_count("2B") == 2000000000);
    CHECK(parse_count("4Ki") == 4096);
    CHECK(parse_count("1Mi") == 1048576);
    CHECK(usage([] { parse_count("0.5"); }).find("whole") != std::string::npos);
    CHECK(usage([] { parse_count("1.2345k"); }).find("whole") != std::string::npos);
}

TEST_CASE("numbers that do not parse are usage errors") {
    for (const char* text : {"", "x", "GiB", "31.7Gi", "24G", "1..2", "-5GB", "1e9", "12 34",
                             "999999999999999999999GB", "9999999999TiB", "84%%"})
        CHECK_FALSE(usage([&] { parse_bytes(text); }).empty());
    for (const char* text : {"", "k", "-1", "1K", "1.", "9999999999B", "0x10"})
        CHECK_FALSE(usage([&] { parse_count(text); }).empty());
    for (const char* text : {"", "nan", "inf", "1,5", "0.1x"})
        CHECK_FALSE(usage([&] { parse_number(text); }).empty());
    CHECK(parse_number("1e-3") == 1e-3);
}

TEST_CASE("choices: a number, a range, a range with a step, a list") {
    CHECK(parse_choices("45") == std::vector<int64_t>{45});
    CHECK(parse_choices("3..6") == std::vector<int64_t>{3, 4, 5, 6});
    CHECK(parse_choices("24k..26k:1k") == std::vector<int64_t>{24000, 25000, 26000});
    CHECK(parse_choices("1..6:2") == std::vector<int64_t>{1, 3, 5});
    CHECK(parse_choices("44,45,46") == std::vector<int64_t>{44, 45, 46});
    for (const char* text : {"", "..", "3..", "6..3", "1..5:0", "1,,2", "1..1000000000"})
        CHECK_FALSE(usage([&] { parse_choices(text); }).empty());
}

TEST_CASE("budgets: absolute or an exact share of the teacher's total, rounded down") {
    CHECK(Amount::parse("31.7GiB", AmountOf::bytes).of(1) == 34037615820);
    CHECK(Amount::parse("84%", AmountOf::bytes).of(1000) == 840);
    CHECK(Amount::parse("84%", AmountOf::bytes).of(1001) == 840);
    CHECK(Amount::parse("62.5%", AmountOf::bytes).of(8) == 5);
    CHECK(Amount::parse("100%", AmountOf::bytes).of(int64_t{1} << 60) == int64_t{1} << 60);
    CHECK(Amount::parse("47B", AmountOf::parameters).of(1) == 47000000000);
    CHECK(describe_budget("budget", Amount::parse("31.7GiB", AmountOf::bytes), AmountOf::bytes, 0) ==
          "budget 31.7GiB = 34037615820 bytes");
    CHECK(describe_budget("budget", Amount::parse("50%", AmountOf::bytes), AmountOf::bytes, 9) ==
          "budget 50% of the teacher's 9 bytes = 4 bytes");
    for (const char* text : {"", "%", "84 percent", "lots", "-84%", "84%GiB"})
        CHECK_FALSE(usage([&] { Amount::parse(text, AmountOf::bytes); }).empty());
}

TEST_CASE("sizes for people") {
    CHECK(format_bytes(512) == "512 bytes");
    CHECK(format_bytes(34037615820) == "31.70 GiB");
    CHECK(format_count(2867968) == "2.87 M");
    CHECK(format_count(8100852736) == "8.10 B");
}

}  // namespace
}  // namespace minipuzzle::cli
