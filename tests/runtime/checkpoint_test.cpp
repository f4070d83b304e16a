#include "runtime/checkpoint.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <set>

#include "kernels/check.h"
#include "runtime/shard_files.h"
#include "tests/catch.h"
#include "tests/support/errors.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"

using namespace minipuzzle;
using namespace minipuzzle::test;
using Catch::Matchers::Contains;
namespace fs = std::filesystem;

namespace {

const std::string kModels = MINIPUZZLE_SOURCE_DIR "/../shared/models/";
constexpr const char* kShard = "model-00001-of-00001.safetensors";

struct OwnedTensor {
    DType dtype = DType::bf16;
    std::vector<int64_t> shape;
    std::vector<std::byte> bytes;
};
using OwnedTensors = std::map<std::string, OwnedTensor>;

OwnedTensor zeros(DType dtype, std::vector<int64_t> shape) {
    StoredTensor sized{"", dtype, shape, {}};
    return {dtype, shape, std::vector<std::byte>(static_cast<std::size_t>(sized.size()))};
}

// A tiny model's folder that a test takes apart and puts together again.
class Folder {
  public:
    explicit Folder(const Architecture& architecture = tiny_architecture(), const TinyModel& options = {}) {
        write_tiny_model(path(), architecture, options);
        const SafetensorsFile file(path() / kShard);
        for (const StoredTensor& tensor : file.tensors())
            tensors[tensor.name] = {tensor.dtype, tensor.shape, {tensor.bytes.begin(), tensor.bytes.end()}};
        config = parse_config_text(read_file(path() / "config.json"), "config.json");
    }
    fs::path path() const { return dir_ / "model"; }

    // Writes `tensors` as one shard with its index, and `config`.
    void write() const {
        Json index = {{"metadata", Json::object()}, {"weight_map", Json::object()}};
        for (const auto& [name, tensor] : tensors) index["weight_map"][name] = kShard;
        write_shard(kShard);
        write_index(index);
    }
    void write_shard(const std::string& name) const {
        std::vector<StoredTensor> stored;
        for (const auto& [tensor_name, tensor] : tensors)
            stored.push_back({tensor_name, tensor.dtype, tensor.shape, tensor.bytes});
        write_safetensors(path() / name, stored);
        write_file_atomically(path() / "config.json", config_text(config));
    }
    void write_index(const Json& index) const { write_file_atomically(path() / kShardIndex, index.dump()); }
    Json index() const { return read_json(path() / kShardIndex); }

    void rename(const std::string& from, const std::string& to) {
        auto node = tensors.extract(from);
        node.key() = to;
        tensors.insert(std::move(node));
    }
    std::string error() const {
        return bad_input([&] { Checkpoint opened(path()); });
    }
    std::string error_after_writing() const {
        write();
        return error();
    }

    OwnedTensors tensors;
    Json config;

  private:
    TempDir dir_;
};

OutgoingCheckpoint outgoing_copy(const Checkpoint& checkpoint) {
    OutgoingCheckpoint outgoing;
    outgoing.config = checkpoint.config();
    outgoing.copies = checkpoint.other_files();
    const auto add = [&](const StoredTensor& tensor) {
        outgoing.tensors.push_back(
            {.name = tensor.name,
             .dtype = tensor.dtype,
             .shape = tensor.shape,
             .bytes = [tensor] { return std::vector(tensor.bytes.begin(), tensor.bytes.end()); },
             .size = std::ssize(tensor.bytes)});
    };
    for (const TensorSlot& slot : tensor_slots(checkpoint.architecture())) add(checkpoint.tensor(slot.name));
    for (const StoredTensor& tensor : checkpoint.unknown()) add(tensor);
    return outgoing;
}

void check_same_tensors(const Checkpoint& found, const Checkpoint& expected) {
    std::map<std::string, const StoredTensor*> left, right;
    for (const SafetensorsFile& shard : found.shards())
        for (const StoredTensor& tensor : shard.tensors()) left[tensor.name] = &tensor;
    for (const SafetensorsFile& shard : expected.shards())
        for (const StoredTensor& tensor : shard.tensors()) right[tensor.name] = &tensor;
    REQUIRE(left.size() == right.size());
    for (const auto& [name, tensor] : right) {
        INFO(name);
        REQUIRE(left.contains(name));
        CHECK(left[name]->dtype == tensor->dtype);
        CHECK(left[name]->shape == tensor->shape);
        CHECK(std::equal(left[name]->bytes.begin(), left[name]->bytes.end(), tensor->bytes.begin(),
                         tensor->bytes.end()));
    }
}

}  // namespace

TEST_CASE("the slots of an architecture cover its parameters") {
    for (const std::string& name : architecture_names()) {
        INFO(name);
        const Architecture architecture = named_architecture(name);
        int64_t total = 0;
        for (const TensorSlot& slot : tensor_slots(architecture))
            total += StoredTensor{"", DType::f32, slot.shape, {}}.elements();
        CHECK(total == parameters(architecture));
    }
    CHECK(tensor_slots(named_architecture("nemotron-h-8b")).size() == 311);
    CHECK(tensor_slots(named_architecture("nemotron-h-47b")).size() == 577);
    CHECK(tensor_slots(named_architecture("nemotron-nano-9b-v2")).size() == 341);
    Architecture tied = tiny_architecture();
    tied.tied_embeddings = true;
    tied.conv_bias = false;
    for (const TensorSlot& slot : tensor_slots(tied)) {
        CHECK(slot.name != "lm_head.weight");
        CHECK_FALSE(slot.name.ends_with("conv1d.bias"));
    }
}

TEST_CASE("the small trained models open and come back byte for byte") {
    const std::string model = GENERATE("mini-20", "mini-52");
    const Checkpoint source(kModels + model);
    CHECK(source.unknown().empty());
    CHECK(source.file_name("layers.0.mixer.D") == "backbone.layers.0.mixer.D");
    CHECK(source.file_name("lm_head.weight") == "lm_head.weight");
    CHECK(source.tensor("layers.0.mixer.A_log").dtype == DType::f32);
    CHECK(source.tensor("embeddings.weight").dtype == DType::bf16);
    CHECK(source.identity().pattern == source.architecture().pattern());

    const TempDir dir;
    OutgoingCheckpoint outgoing = outgoing_copy(source);
    outgoing.shard_bytes = 2'000'000;
    outgoing.texts["README.md"] = "a card";
    write_checkpoint(dir / "copy", outgoing);
    const Checkpoint copy(dir / "copy");
    check_same_tensors(copy, source);
    CHECK(copy.shards().size() > 2);
    CHECK(copy.architecture() == source.architecture());
    CHECK(copy.config() == source.config());
    CHECK(read_file(dir / "copy/README.md") == "a card");
    CHECK(read_file(dir / "copy/tokenizer.json") == read_file(kModels + model + "/tokenizer.json"));
    int64_t total = 0;
    for (const TensorSlot& slot : tensor_slots(copy.architecture())) total += copy.tensor(slot.name).size();
    CHECK(read_json(dir / "copy/model.safetensors.index.json")["metadata"]["total_size"] == total);
}

TEST_CASE("every spelling of the names is understood and kept") {
    const std::string prefix =
        GENERATE("backbone.", "model.", "language_model.backbone.", "language_model.model.", "");
    TinyModel options;
    options.prefix = prefix;
    options.head_prefix = prefix.starts_with("language_model.") ? "language_model." : "";
    Folder folder(tiny_architecture(), options);
    folder.rename(prefix + "embeddings.weight", prefix + "embedding.weight");
    folder.tensors["mtp.layers.0.norm.weight"] = zeros(DType::bf16, {16});
    folder.tensors["vision_model.patch.weight"] = zeros(DType::u8, {3});
    folder.write();
    const Checkpoint checkpoint(folder.path());
    CHECK(checkpoint.tensor("embeddings.weight").name == prefix + "embedding.weight");
    CHECK(checkpoint.file_name("embeddings.weight") == prefix + "embedding.weight");
    CHECK(checkpoint.file_name("layers.77.norm.weight") == prefix + "layers.77.norm.weight");
    CHECK(checkpoint.file_name("lm_head.weight") == options.head_prefix + "lm_head.weight");
    REQUIRE(checkpoint.unknown().size() == 2);
    CHECK(checkpoint.unknown()[0].name == "mtp.layers.0.norm.weight");
}

TEST_CASE("a tied model may lack its head or store it") {
    Architecture tied = tiny_architecture();
    tied.tied_embeddings = true;
    Folder folder(tied);
    CHECK(Checkpoint(folder.path()).unknown().empty());
    folder.tensors["lm_head.weight"] = zeros(DType::bf16, {64, 16});
    folder.write();
    CHECK(Checkpoint(folder.path()).unknown().empty());
}

TEST_CASE("a folder with one file and no index opens") {
    const Folder folder;
    fs::remove(folder.path() / kShardIndex);
    fs::rename(folder.path() / kShard, folder.path() / kSingleShard);
    CHECK(Checkpoint(folder.path()).shards().size() == 1);
    // An index that names this very file is the same thing said twice.
    Json index = {{"weight_map", Json::object()}};
    for (const auto& [name, tensor] : folder.tensors) index["weight_map"][name] = kSingleShard;
    folder.write_index(index);
    CHECK(Checkpoint(folder.path()).shards().size() == 1);
}

TEST_CASE("folders that are no model say what is missing") {
    const TempDir dir;
    const auto said = [](const fs::path& path) { return bad_input([&] { Checkpoint opened(path); }); };
    CHECK_THAT(said(dir / "none"), Contains("no such folder"));
    CHECK_THAT(said(dir.write("file", "x")), Contains("is not a folder"));
    CHECK_THAT(said(dir.path()), Contains("holds no config.json"));
    Folder folder;
    folder.write_shard("model-00002-of-00002.safetensors");
    fs::remove(folder.path() / kShardIndex);
    CHECK_THAT(folder.error(), Contains("holds neither"));
    std::ofstream(folder.path() / "pytorch_model.bin") << "x";
    CHECK_THAT(folder.error(), Contains("pytorch_model.bin") && Contains("convert"));
    folder.write();
    fs::copy(folder.path() / kShard, folder.path() / kSingleShard);
    CHECK_THAT(folder.error(), Contains("both"));
    fs::remove(folder.path() / kSingleShard);
    std::ofstream(folder.path() / "config.json") << "{";
    CHECK_THAT(folder.error(), Contains("config.json: is not valid JSON"));
}

TEST_CASE("an index that does not tell the truth is refused") {
    const Folder folder;
    const Json good = folder.index();
    const auto said = [&](const std::string& tensor, const Json& shard) {
        Json index = good;
        index["weight_map"][tensor] = shard;
        folder.write_index(index);
        return folder.error();
    };
    CHECK_THAT(said("backbone.norm_f.weight", "model-9.safetensors"),
               Contains("model-9.safetensors: no such file"));
    CHECK_THAT(said("backbone.norm_f.weight", 3),
               Contains("backbone.norm_f.weight") && Contains("file name"));
    CHECK_THAT(said("not.there", kShard), Contains("lacks tensor \"not.there\""));
    const std::string absolute = (folder.path() / kShard).string();
    for (const std::string& escape : {std::string("../model.safetensors"), absolute, std::string("a/../../b"),
                                      std::string(""), std::string("..")}) {
        INFO(escape);
        CHECK_THAT(said("backbone.norm_f.weight", escape), Contains("does not lie inside the folder"));
    }
    Json index = good;
    index["weight_map"].erase("backbone.norm_f.weight");
    folder.write_index(index);
    CHECK_THAT(folder.error(),
               Contains("holds tensor \"backbone.norm_f.weight\"") && Contains("does not list"));
    for (const char* bad : {"{}", "[]", "{\"weight_map\": []}", "{\"weight_map\": {}}",
                            "{\"weight_map\": {\"a\": \"x\", "
                            "\"a\": \"y\"}}",
                            "weight_map"}) {
        std::ofstream(folder.path() / kShardIndex) << bad;
        CHECK_THAT(folder.error(), Contains(kShardIndex));
    }
}

TEST_CASE("a tensor in two shards is refused") {
    const Folder folder;
    // Both shards hold all tensors; a weight map can give each of them to one only.
    folder.write_shard("second.safetensors");
    Json index = folder.index();
    index["weight_map"]["backbone.norm_f.weight"] = "second.safetensors";
    folder.write_index(index);
    CHECK_THAT(folder.error(), Contains("does not list for it"));
}

TEST_CASE("links out of the folder are refused, those of a Hub cache are not") {
    const Folder folder;
    const TempDir elsewhere;
    const auto link_shard_to = [&](const fs::path& target) {
        fs::remove(folder.path() / kShard);
        fs::create_symlink(target, folder.path() / kShard);
    };
    fs::copy(folder.path() / kShard, elsewhere / "shard");
    fs::copy(folder.path() / kShard, folder.path() / "inside");
    link_shard_to("inside");
    CHECK_NOTHROW(Checkpoint(folder.path()));
    link_shard_to(elsewhere / "shard");
    CHECK_THAT(folder.error(), Contains("links to") && Contains("out of its folder"));
    link_shard_to(elsewhere / "nothing");
    CHECK_THAT(folder.error(), Contains("no such file"));

    fs::create_directories(elsewhere / "models--a/snapshots/r1");
    fs::create_directories(elsewhere / "models--a/blobs");
    fs::rename(elsewhere / "shard", elsewhere / "models--a/blobs/0123");
    fs::copy(folder.path() / "config.json", elsewhere / "models--a/blobs/4567");
    const fs::path snapshot = elsewhere / "models--a/snapshots/r1";
    fs::create_symlink("../../blobs/0123", snapshot / kSingleShard);
    fs::create_symlink("../../blobs/4567", snapshot / "config.json");
    CHECK_NOTHROW(Checkpoint(snapshot));
}

TEST_CASE("tensors that contradict config.json are refused") {
    Folder folder;
    SECTION("missing") {
        folder.tensors.erase("backbone.layers.2.mixer.q_proj.weight");
        CHECK_THAT(folder.error_after_writing(),
                   Contains("backbone.layers.2.mixer.q_proj.weight\" is missing,"));
        folder.tensors.erase("lm_head.weight");
        CHECK_THAT(folder.error_after_writing(), Contains("(and 1 more)"));
    }
    SECTION("nothing of the model at all") {
        folder.tensors = {{"vision.weight", zeros(DType::f32, {1})}};
        CHECK_THAT(folder.error_after_writing(), Contains("backbone.embeddings.weight") && Contains("more)"));
    }
    SECTION("another shape") {
        folder.tensors["backbone.norm_f.weight"] = zeros(DType::bf16, {17});
        CHECK_THAT(folder.error_after_writing(), Contains("backbone.norm_f.weight") &&
                                                     Contains("has shape [17], but config.json says [16]"));
    }
    SECTION("a convolution without its middle axis") {
        folder.tensors["backbone.layers.0.mixer.conv1d.weight"] = zeros(DType::bf16, {64, 4});
        CHECK_THAT(folder.error_after_writing(), Contains("[64, 4]") && Contains("[64, 1, 4]"));
    }
    SECTION("a layer beyond the pattern") {
        folder.tensors["backbone.layers.5.norm.weight"] = zeros(DType::bf16, {16});
        CHECK_THAT(folder.error_after_writing(),
                   Contains("layers.5.norm.weight") && Contains("5 layers, M-*M-"));
    }
    SECTION("a layer of another type") {
        folder.tensors["backbone.layers.1.mixer.q_proj.weight"] = zeros(DType::bf16, {32, 16});
        CHECK_THAT(folder.error_after_writing(), Contains("layer 1 is '-' (ffn)"));
    }
    SECTION("a pattern cut short") {
        folder.config["hybrid_override_pattern"] = "M-*M";
        folder.config["num_hidden_layers"] = 4;
        CHECK_THAT(folder.error_after_writing(), Contains("layers.4.") && Contains("4 layers, M-*M"));
    }
    SECTION("a bias that config.json denies") {
        folder.config["use_conv_bias"] = false;
        CHECK_THAT(folder.error_after_writing(), Contains("conv1d.bias"));
    }
    SECTION("a layer number that is none") {
        folder.tensors["backbone.layers.x.norm.weight"] = zeros(DType::bf16, {16});
        CHECK_THAT(folder.error_after_writing(), Contains("layers.NUMBER.NAME"));
    }
    SECTION("a layer number that is no number") {
        folder.tensors["backbone.layers.1"] = zeros(DType::bf16, {16});
        CHECK_THAT(folder.error_after_writing(), Contains("layers.NUMBER.NAME"));
    }
    SECTION("a huge layer number") {
        folder.tensors["backbone.layers.99999999999999999999999.norm.weight"] = zeros(DType::bf16, {16});
        CHECK_THAT(folder.error_after_writing(), Contains("layers.NUMBER.NAME"));
    }
    SECTION("both names of the embeddings") {
        folder.tensors["backbone.embedding.weight"] = folder.tensors["backbone.embeddings.weight"];
        CHECK_THAT(folder.error_after_writing(), Contains("under both of its names"));
    }
    SECTION("quantised weights") {
        folder.tensors["backbone.layers.1.mixer.up_proj.weight"] = zeros(DType::f8_e4m3, {32, 16});
        CHECK_THAT(folder.error_after_writing(), Contains("F8_E4M3") && Contains("quantised"));
    }
    SECTION("quantisation scales") {
        folder.tensors["backbone.layers.1.mixer.up_proj.weight_scale"] = zeros(DType::f32, {});
        CHECK_THAT(folder.error_after_writing(), Contains("weight_scale") && Contains("quantised"));
    }
}

TEST_CASE("a truncated shard is refused") {
    const Folder folder;
    const std::string whole = read_file(folder.path() / kShard);
    for (std::size_t length :
         {whole.size() - 1, whole.size() / 2, std::size_t{100}, std::size_t{7}, std::size_t{0}}) {
        std::ofstream(folder.path() / kShard, std::ios::binary) << whole.substr(0, length);
        CHECK_THAT(folder.error(), Contains(kShard));
    }
}

TEST_CASE("hashes see what they promise to see") {
    Folder folder;
    const ModelIdentity before = Checkpoint(folder.path()).identity(true);
    const std::string before_headers = Checkpoint(folder.path()).weights_hash(false);
    folder.write();
    folder.tensors["lm_head.weight"].bytes[0] ^= std::byte{1};
    folder.write();
    CHECK(Checkpoint(folder.path()).weights_hash(true) != before.weights_hash);
    CHECK(Checkpoint(folder.path()).identity().arch_hash == before.arch_hash);
    folder.tensors["lm_head.weight"] = zeros(DType::f32, {64, 16});
    folder.write();
    CHECK(Checkpoint(folder.path()).weights_hash(false) != before_headers);
}

TEST_CASE("other files are copied with their folders, weights and leftovers are not") {
    const Folder folder;
    const auto touch = [&](const std::string& name) {
        fs::create_directories((folder.path() / name).parent_path());
        std::ofstream(folder.path() / name) << name;
    };
    for (const char* name : {"tokenizer.json", "modeling.py", "assets/deep/logo.svg", "assets/onnx.bin",
                             "pytorch_model.bin", "old.safetensors", ".git/HEAD", "student/config.json"})
        touch(name);
    touch(std::string("student/") + kOutputMarker);
    std::vector<std::string> names;
    const Checkpoint checkpoint(folder.path());
    for (const fs::path& path : checkpoint.other_files()) names.push_back(path.filename().string());
    CHECK(names == std::vector<std::string>{"assets", "modeling.py", "tokenizer.json"});

    const TempDir dir;
    OutgoingCheckpoint outgoing = outgoing_copy(checkpoint);
    outgoing.texts["modeling.py"] = "ours";
    write_checkpoint(dir / "copy", outgoing);
    CHECK(read_file(dir / "copy/assets/deep/logo.svg") == "assets/deep/logo.svg");
    CHECK_FALSE(fs::exists(dir / "copy/assets/onnx.bin"));
    CHECK(read_file(dir / "copy/modeling.py") == "ours");

    fs::create_symlink("/etc/hostname", folder.path() / "assets/link");
    CHECK_THAT(bad_input([&] { write_checkpoint(dir / "next", outgoing); }), Contains("link"));
    CHECK_FALSE(fs::exists(dir / "next"));
    fs::create_symlink("/etc/hostname", folder.path() / "link");
    CHECK_THAT(bad_input([&] { checkpoint.other_files(); }), Contains("link"));
}

TEST_CASE("a writer that fails leaves no folder") {
    const TempDir dir;
    OutgoingCheckpoint outgoing;
    outgoing.config = tiny_config(tiny_architecture());
    outgoing.tensors.push_back(
        {.name = "a",
         .dtype = DType::f32,
         .shape = {1},
         .bytes = []() -> std::vector<std::byte> { fail_input("the source went away"); },
         .size = 4});
    CHECK(bad_input([&] { write_checkpoint(dir / "out", outgoing); }) == "the source went away");
    CHECK(fs::is_empty(dir.path()));
}

TEST_CASE("mutated folders never do worse than an error") {
    const Folder folder;
    const std::vector<fs::path> files = {folder.path() / "config.json", folder.path() / kShardIndex,
                                         folder.path() / kShard};
    std::vector<std::string> originals;
    for (const fs::path& file : files) originals.push_back(read_file(file));
    int opened = 0, refused = 0;
    for (uint64_t round = 0; round < 1500; ++round) {
        const auto draw = [&](uint64_t index, std::size_t below) {
            return static_cast<std::size_t>(uniform(round, "folder", index) * static_cast<double>(below));
        };
        const std::size_t chosen = draw(0, files.size());
        std::string mutant = originals[chosen];
        // The front of a shard is its header; its data may be anything.
        const std::size_t reach = std::min(mutant.size(), std::size_t{4000});
        const std::size_t at = draw(1, reach), kind = draw(2, 4);
        const char byte = "0129-[]{},:\"eME*"[draw(3, 16)];
        if (kind == 0) mutant[at] = static_cast<char>(draw(4, 256));
        if (kind == 1) mutant[at] = byte;
        if (kind == 2) mutant.insert(at, 1, byte);
        if (kind == 3) mutant.erase(at, 1);
        std::ofstream(files[chosen], std::ios::binary | std::ios::trunc) << mutant;
        try {
            const Checkpoint checkpoint(folder.path());
            CHECK(checkpoint.architecture().layers.size() == 5);
            ++opened;
        } catch (const Error& error) {
            CHECK(error.kind() == ErrorKind::bad_input);
            ++refused;
        }
        std::ofstream(files[chosen], std::ios::binary | std::ios::trunc) << originals[chosen];
    }
    CHECK(opened > 10);
    CHECK(refused > 500);
}
