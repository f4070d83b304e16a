#include "runtime/tokenizer.h"

#include <fmt/format.h>

#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "kernels/check.h"
#include "runtime/added_tokens.h"
#include "runtime/bpe.h"
#include "runtime/unicode_regex.h"
#include "tests/catch.h"
#include "tests/support/temp_dir.h"

using namespace minipuzzle;
using minipuzzle::test::TempDir;
using nlohmann::json;

namespace {

// Llama-3's pattern: the other one that Nemotron-H tokenizers come with.
constexpr const char* kLlamaPattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

std::string demo_tokenizer() { return MINIPUZZLE_SOURCE_DIR "/configs/demo/model/tokenizer.json"; }

json demo_json() { return json::parse(std::ifstream(demo_tokenizer())); }

Tokenizer from_json(const json& file) {
    const TempDir folder;
    const auto path = folder.path() / "tokenizer.json";
    std::ofstream(path) << file.dump();
    return Tokenizer(path);
}

// The message that loading the demo's tokenizer gives after `change`.
std::string load_error(const std::function<void(json&)>& change) {
    json file = demo_json();
    change(file);
    try {
        from_json(file);
    } catch (const Error& e) {
        CHECK(e.kind() == ErrorKind::bad_input);
        CHECK(std::string(e.what()).find('\n') == std::string::npos);
        return e.what();
    }
    return "no error";
}

std::vector<std::string> pieces(const char* pattern, std::string_view text) {
    std::vector<std::string_view> views;
    UnicodeRegex(pattern).split(text, views);
    return {views.begin(), views.end()};
}

// An added token as tokenizer.json writes it.
json added(int id, const std::string& content, const std::vector<std::string>& flags) {
    json token = {{"id", id}, {"content", content}, {"special", false}, {"normalized", false}};
    for (const std::string& flag : flags) token[flag] = true;
    return token;
}

using Ids = std::vector<int32_t>;
using Texts = std::vector<std::string>;

}  // namespace

TEST_CASE("Golden ids of the tokenizers library, all exact, and decoding gives the text back") {
    for (const std::string name : {"mini-20", "mini-52"}) {
        const std::string folder = MINIPUZZLE_SOURCE_DIR "/../shared/models/" + name;
        const json golden = json::parse(std::ifstream(folder + "/tokenizer_golden.json"));
        const Tokenizer tokenizer(folder + "/tokenizer.json");
        REQUIRE(golden.size() == 74);
        for (std::size_t i = 0; i < golden.size(); ++i) {
            CAPTURE(name, i);
            const auto text = golden[i]["text"].get<std::string>();
            const auto ids = golden[i]["ids"].get<Ids>();
            CHECK(tokenizer.encode(text) == ids);
            CHECK(tokenizer.encode(text, false) == Ids(ids.begin() + 1, ids.end()));
            CHECK(tokenizer.decode(ids) == "<s>" + text);
            CHECK(tokenizer.decode({ids[0]}, true).empty());
        }
    }
}

// Expected ids from the `tokenizers` library, 0.23.
TEST_CASE("The demo's tokenizer on camel case, combining marks, U+180E, joiners, controls and special text") {
    const Tokenizer tokenizer(demo_tokenizer());
    const std::vector<std::pair<std::string, Ids>> cases = {
        {"eBay iPhone fooBAR", {1, 84, 49, 403, 606, 63, 87, 575, 292, 719, 49, 844}},
        {"a\u180e\u180eb \u180e", {1, 80, 173, 270, 252, 173, 270, 252, 81, 236, 173, 270, 252}},
        {"e\u0301te\u0301 \u01c5", {1, 84, 152, 239, 693, 152, 239, 236, 147, 243}},
        {"tab\t\r\n\n  x  ", {1, 99, 367, 213, 217, 290, 236, 632, 272}},
        {"\U0001f469\u200d\U0001f467 \u6f22\u5b57",
         {1, 188, 269, 255, 118, 512, 251, 188, 269, 255, 116, 236, 178, 136, 111, 177, 271, 261}},
        {"x<s></s>[INST] <SPECIAL_7><SPECIAL_", {1, 103, 1, 2, 3, 236, 7, 43, 66, 63, 1312, 56, 727, 78}},
        {"don't I'LL", {1, 83, 279, 971, 382, 22, 912}},
        {"a/b//\n/c", {1, 80, 30, 81, 397, 214, 30, 82}},
        {"   \u3000 12345", {1, 291, 1236, 238, 236, 32, 33, 34, 35, 36}},
        {"", {1}},
    };
    for (const auto& [text, ids] : cases) {
        CAPTURE(text);
        CHECK(tokenizer.encode(text) == ids);
        CHECK(tokenizer.decode(ids, true) == tokenizer.decode(tokenizer.encode(text, false), true));
    }
    CHECK(tokenizer.size() == 2048);
    CHECK(tokenizer.id_of("</s>") == 2);
    CHECK(tokenizer.id_of("\u0120\u0120") == tokenizer.encode("  ", false)[0]);  // two spaces in the alphabet
    CHECK(tokenizer.id_of("no such token") == -1);
}

TEST_CASE("\\s is White_Space inside and outside classes; U+180E is not among it") {
    CHECK(pieces(R"(\s+)", "a\u3000\u2028 b") == Texts{"a", "\u3000\u2028 ", "b"});
    CHECK(pieces(R"(\s+)", "a \u180e") == Texts{"a", " ", "\u180e"});
    CHECK(pieces(R"(\S+)", " \u180ex\u0085") == Texts{" ", "\u180ex", "\u0085"});
    CHECK(pieces(R"([^\s\p{L}]+)", "a\u180e1\u00a0") == Texts{"a", "\u180e1", "\u00a0"});
    CHECK(pieces(R"([\Sx]+)", "a\u180e\u2003b") == Texts{"a\u180e", "\u2003", "b"});
    CHECK(pieces(R"(\s+(?!\S)|\s+)", "   \u180e") == Texts{"  ", " ", "\u180e"});
    CHECK(pieces(R"([^\]\\s]+)", "s]\\t") == Texts{"s]\\", "t"});  // an escaped backslash, then the letter s
    for (char32_t c = 0; c < 0x3100; ++c) {
        const bool listed = (c >= 9 && c <= 13) || c == 32 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
                            (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
                            c == 0x205f || c == 0x3000;
        if (is_white_space(c) != listed) FAIL("code point " << static_cast<uint32_t>(c));
    }
}

TEST_CASE("The Llama-3 pattern splits contractions, numbers in threes, and folds case as Unicode does") {
    CHECK(pieces(kLlamaPattern, "I'LL don'\u017f 12345 eBay\n\n  x") ==
          Texts{"I", "'LL", " don", "'\u017f", " ", "123", "45", " eBay", "\n\n", " ", " x"});
}

TEST_CASE("Constructs that Oniguruma and PCRE2 read differently are refused by name") {
    for (const char* pattern :
         {"^a",     "a$",        R"(\w)",           R"(\h)", R"(\v)",   R"(\b)",   "(?i)a",
          "(?m:a)", "[a[b]]",    "[a&&b]",          "a{,3}", "a{1,2}+", "[]a]",    "[a-",
          R"(\pL)", R"([\s-a])", R"([a-\s])",       "a\\",   R"(\xff)", R"(\u12)", "(a",
          "a{2",    "*a",        R"(\p{Nonsense})", "[z-a]", "(*FAIL)", "(?<n>a)"}) {
        CAPTURE(pattern);
        CHECK_THROWS_AS(UnicodeRegex(pattern), Error);
    }
    CHECK(pieces(R"(\u0061\x{1F600}?|\x41)", "aA") == Texts{"a", "A"});
}

TEST_CASE("Catastrophic backtracking and ill-formed UTF-8 are errors, long texts are not") {
    std::vector<std::string_view> out;
    const std::string many(40, 'a');
    CHECK_THROWS_AS(UnicodeRegex(R"((?:a|a)*\p{N})").split(many, out), Error);
    const Tokenizer tokenizer(demo_tokenizer());
    for (const char* text :
         {"\xff", "a\xc3", "\xed\xa0\x80", "<s>\xe2\x82", "\xc0\x80", "\xf4\x90\x80\x80"}) {
        CHECK_THROWS_AS(tokenizer.encode(text), Error);
    }
    for (const char* unit : {" ", "a", "\n", "=", "\u6f22"}) {
        std::string text;
        for (int i = 0; i < 200000; ++i) text += unit;
        CHECK(tokenizer.decode(tokenizer.encode(text, false)) == text);
    }
}

TEST_CASE("Merging through the heap gives what scanning gives") {
    // ignore_merges off, so that the whole words of the vocabulary are merged too.
    json file = demo_json();
    file["model"]["ignore_merges"] = false;
    const Bpe model(file["model"]);
    const std::string text = "internationalisationstringbufferprocessing";
    Ids scanned;
    model.encode(text, scanned);
    REQUIRE(text.size() <= 48);
    // A byte that merges with nothing fences the repeats, so each is merged as if alone.
    const std::string fence = "\x01";
    Ids fence_ids;
    model.encode(fence, fence_ids);
    Ids expected, found;
    std::string repeated;
    for (int i = 0; i < 20; ++i) {
        repeated += text + fence;
        expected.insert(expected.end(), scanned.begin(), scanned.end());
        expected.insert(expected.end(), fence_ids.begin(), fence_ids.end());
    }
    model.encode(repeated, found);
    CHECK(found == expected);
}

TEST_CASE("Merges written as text and as pairs, an absent template, and processors in a row are read alike") {
    const std::string text = "Both spellings of the merges give the same ids.";
    const Ids expected = Tokenizer(demo_tokenizer()).encode(text, false);
    json file = demo_json();
    for (json& merge : file["model"]["merges"]) {
        merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
    }
    const json original = file["post_processor"];
    file["post_processor"] = nullptr;
    CHECK(from_json(file).encode(text) == expected);
    file["post_processor"] = {{"type", "ByteLevel"}, {"trim_offsets", false}};
    CHECK(from_json(file).encode(text) == expected);
    json around = original;
    around["single"].push_back({{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}});
    file["post_processor"] = {{"type", "Sequence"}, {"processors", {file["post_processor"], around}}};
    Ids wrapped = expected;
    wrapped.insert(wrapped.begin(), 1);
    wrapped.push_back(1);
    CHECK(from_json(file).encode(text) == wrapped);
    CHECK(from_json(file).encode(text, false) == expected);
}

TEST_CASE("Added tokens: leftmost, longest, white space stripped, whole words, normalized ones last") {
    json file = demo_json();
    const Bpe model(file["model"]);
    const json list = {added(3000, "<a", {}),
                       added(3001, "<ab>", {}),
                       added(3002, "<l>", {"lstrip"}),
                       added(3003, "<r>", {"rstrip"}),
                       added(3004, "wqrd", {"single_word"}),
                       added(3005, "b><", {"normalized"}),
                       added(3006, "<b", {})};
    const AddedTokens tokens(json::parse(list.dump()), model);  // parsed: ids are unsigned, as in a file
    const auto split = [&](std::string_view text) {
        std::string shown;
        for (const Stretch& stretch : tokens.split(text)) {
            shown += stretch.id < 0 ? fmt::format("({})", stretch.text)
                                    : fmt::format("{}[{}]", stretch.id, stretch.text);
        }
        return shown;
    };
    CHECK(split("").empty());
    CHECK(split("x<ab><ac") == "(x)3001[<ab>]3000[<a](c)");
    CHECK(split("x \u2003<l> y") == "(x)3002[ \u2003<l>]( y)");
    CHECK(split("x <r> \n y") == "(x )3003[<r> \n ](y)");
    CHECK(split("<r>  <l>") == "3003[<r>  ]3002[<l>]");
    CHECK(split("wqrd wqrds \u00e9wqrd wqrd,") == "3004[wqrd]( wqrds \u00e9wqrd )3004[wqrd](,)");
    CHECK(split("xb><by") == "(xb>)3006[<b](y)");  // "b><" would start earlier, but is normalized
    CHECK(split("xb><cy") == "(x)3005[b><](cy)");
}

TEST_CASE("An unsupported tokenizer.json is an error that names the thing") {
    const auto says = [](const std::string& part, const std::function<void(json&)>& change) {
        const std::string message = load_error(change);
        CAPTURE(message);
        CHECK(message.find(part) != std::string::npos);
    };
    says("Unigram", [](json& t) { t["model"]["type"] = "Unigram"; });
    says("NFC", [](json& t) { t["normalizer"] = {{"type", "NFC"}}; });
    says("Whitespace", [](json& t) { t["pre_tokenizer"] = {{"type", "Whitespace"}}; });
    says("pre_tokenizer", [](json& t) { t["pre_tokenizer"] = nullptr; });
    says("Digits", [](json& t) { t["pre_tokenizer"]["pretokenizers"][0] = {{"type", "Digits"}}; });
    says("Removed", [](json& t) { t["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Removed"; });
    says("add_prefix_space",
         [](json& t) { t["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = true; });
    says("Regex", [](json& t) { t["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {{"String", " "}}; });
    says("ill-formed", [](json& t) { t["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(a"; });
    says("RobertaProcessing", [](json& t) { t["post_processor"]["type"] = "RobertaProcessing"; });
    says("\"B\"", [](json& t) { t["post_processor"]["single"][1]["Sequence"]["id"] = "B"; });
    says("Sequence A", [](json& t) { t["post_processor"]["single"].erase(1); });
    says("\"<s>\"", [](json& t) { t["post_processor"]["special_tokens"] = json::object(); });
    says("99999", [](json& t) { t["post_processor"]["special_tokens"]["<s>"]["ids"] = {99999}; });
    says("Metaspace", [](json& t) { t["decoder"] = {{"type", "Metaspace"}}; });
    says("dropout", [](json& t) { t["model"]["dropout"] = 0.1; });
    says("end_of_word_suffix", [](json& t) { t["model"]["end_of_word_suffix"] = "</w>"; });
}

TEST_CASE("A hostile tokenizer.json is an error of one line, never a crash") {
    const auto says = [](const std::string& part, const std::function<void(json&)>& change) {
        const std::string message = load_error(change);
        CAPTURE(message);
        CHECK(message.find(part) != std::string::npos);
    };
    says("-1", [](json& t) { t["model"]["vocab"]["new"] = -1; });
    says("4000000000", [](json& t) { t["model"]["vocab"]["new"] = 4000000000u; });
    says("1.5", [](json& t) { t["model"]["vocab"]["new"] = 1.5; });
    says("two tokens", [](json& t) { t["model"]["vocab"]["new"] = 5; });
    says("0x61", [](json& t) { t["model"]["vocab"].erase("a"); });
    says("vocab", [](json& t) { t["model"]["vocab"] = json::array(); });
    says("vocab", [](json& t) { t["model"].erase("vocab"); });
    says("merges", [](json& t) { t["model"]["merges"] = 7; });
    says("merges[0]", [](json& t) { t["model"]["merges"][0] = {"a"}; });
    says("merges[1]", [](json& t) { t["model"]["merges"][1] = "a b c"; });
    says("merges[2]", [](json& t) { t["model"]["merges"][2] = {"zq", "\u0120"}; });
    says("ignore_merges", [](json& t) { t["model"]["ignore_merges"] = "yes"; });
    says("model", [](json& t) { t["model"] = "BPE"; });
    says("added_tokens", [](json& t) { t["added_tokens"] = "none"; });
    says("added_tokens[0]", [](json& t) { t["added_tokens"][0] = 3; });
    says("id", [](json& t) { t["added_tokens"][0]["id"] = -4; });
    says("model.vocab 0", [](json& t) { t["added_tokens"][0]["id"] = 1; });
    says("twice", [](json& t) { t["added_tokens"].push_back({{"id", 1}, {"content", "new"}}); });
    says("twice", [](json& t) { t["added_tokens"].push_back({{"id", 9999}, {"content", "<s>"}}); });
    says("another token", [](json& t) {
        t["added_tokens"].push_back({{"id", 300}, {"content", "brand new"}});
    });
    says("content", [](json& t) { t["added_tokens"][0].erase("content"); });
    says("lstrip", [](json& t) { t["added_tokens"][0]["lstrip"] = 1; });
    says("type", [](json& t) { t["pre_tokenizer"] = {1, 2}; });
    const TempDir folder;
    for (const char* content : {"", "[]", "{", "{}", "\xff", "null", "{\"model\": {\"type\": \"BPE\"}}"}) {
        std::ofstream(folder.path() / "tokenizer.json") << content;
        CHECK_THROWS_AS(Tokenizer(folder.path() / "tokenizer.json"), Error);
    }
    CHECK_THROWS_AS(Tokenizer(folder.path() / "absent.json"), Error);
}

TEST_CASE("decode refuses ids that the tokenizer lacks") {
    const Tokenizer tokenizer(demo_tokenizer());
    CHECK_THROWS_AS(tokenizer.decode({2048}), Error);
    CHECK_THROWS_AS(tokenizer.decode({-1}), Error);
    CHECK(tokenizer.decode({188}) == std::string(1, '\xf0'));  // a cut character stays cut
}
