// Gradient norms and AdamW over many tensors on the device against the CPU in float32.
#include <cstring>

#include "tests/gpu/dense_testing.h"

using namespace minipuzzle;
using namespace minipuzzle::testing;

namespace {

std::vector<double> download_doubles(Backend& gpu, const Tensor& tensor) {
    std::vector<double> values(tensor.elements());
    gpu.copy(reinterpret_cast<std::byte*>(values.data()), tensor.data, tensor.bytes());
    return values;
}

// Owns the tensors of one place, host or device.
class Memory {
  public:
    explicit Memory(Backend& backend) : backend_(backend) {}
    ~Memory() {
        for (std::byte* memory : taken_) backend_.free(memory);
    }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    // `values` in the type given, `offset` elements into memory of its own.
    Tensor tensor(DType dtype, const std::vector<double>& values, int64_t offset) {
        const auto count = static_cast<int64_t>(values.size());
        Tensor made(nullptr, dtype, {count}, backend_.device());
        const int64_t size = bytes_of(dtype);
        taken_.push_back(backend_.allocate((count + offset) * size));
        made.data = taken_.back() + offset * size;
        std::vector<std::byte> raw(count * size);
        for (int64_t i = 0; i < count; ++i) {
            const auto value = static_cast<float>(values[i]);
            const uint16_t half = float_to_bf16(value);
            if (dtype == DType::f64)
                std::memcpy(raw.data() + i * size, &values[i], size);
            else
                std::memcpy(raw.data() + i * size,
                            dtype == DType::bf16 ? static_cast<const void*>(&half) : &value, size);
        }
        backend_.copy(made.data, raw.data(), made.bytes());
        return made;
    }
    std::vector<float> values(const Tensor& tensor) const {
        std::vector<std::byte> raw(tensor.bytes());
        backend_.copy(raw.data(), tensor.data, tensor.bytes());
        std::vector<float> values(tensor.elements());
        for (std::size_t i = 0; i < values.size(); ++i)
            values[i] = tensor.dtype == DType::bf16
                            ? bf16_to_float(reinterpret_cast<const uint16_t*>(raw.data())[i])
                            : reinterpret_cast<const float*>(raw.data())[i];
        return values;
    }

  private:
    Backend& backend_;
    std::vector<std::byte*> taken_;
};

enum class Parameter { master_itself, bf16_beside_master, f32_beside_master };

struct Layout {
    int64_t count;
    Parameter parameter;
    DType moments;
    bool decays;
    int64_t offset = 0;  // of every address, in elements
};

// The tensors of `layouts` under training on one backend, with repeatable values.
class Model {
  public:
    Model(Backend& backend, const std::vector<Layout>& layouts) : backend_(backend), memory_(backend) {
        Random random(50);
        for (const Layout& layout : layouts) {
            const int64_t n = layout.count;
            TrainedTensor t;
            const auto master = random.normals(n), gradient = random.normals(n, 0, 0.1);
            const auto moment1 = random.normals(n, 0, 0.05);
            auto moment2 = random.normals(n, 0, 0.02);
            for (double& v : moment2) v *= v;
            const bool own = layout.parameter == Parameter::master_itself;
            const DType copy = layout.parameter == Parameter::bf16_beside_master ? DType::bf16 : DType::f32;
            t.parameter = memory_.tensor(copy, master, layout.offset);
            if (!own) t.master = memory_.tensor(DType::f32, master, layout.offset);
            t.gradient = memory_.tensor(DType::f32, gradient, layout.offset);
            t.moment1 = memory_.tensor(layout.moments, moment1, layout.offset);
            t.moment2 = memory_.tensor(layout.moments, moment2, layout.offset);
            t.decays = layout.decays;
            update_.tensors.push_back(t);
        }
        update_.squares = memory_.tensor(DType::f64, std::vector<double>(layouts.size(), NAN), 0);
        update_.learning_rate = 0.01;
        update_.weight_decay = 0.1;
        update_.clip = 1;
        update_.step = 3;
    }

    AdamW& update() { return update_; }
    std::vector<double> norms() {
        GradientNorms norms{.gradients = {}, .squares = update_.squares};
        for (const TrainedTensor& t : update_.tensors) norms.gradients.push_back(t.gradient);
        backend_.run(norms);
        return download_doubles(backend_, update_.squares);
    }
    void step() {
        norms();
        backend_.run(update_);
    }
    std::vector<float> values(const Tensor& tensor) const { return memory_.values(tensor); }
    // Everything that an update may change, one tensor after the other.
    std::vector<float> all() const {
        std::vector<float> all;
        for (const TrainedTensor& t : update_.tensors) {
            for (const Tensor& tensor : {t.parameter, t.master, t.moment1, t.moment2}) {
                if (!tensor) continue;
                const auto part = values(tensor);
                all.insert(all.end(), part.begin(), part.end());
            }
        }
        return all;
    }

  private:
    Backend& backend_;
    Memory memory_;
    AdamW update_;
};

std::vector<Layout> every_layout() {
    std::vector<Layout> layouts;
    const int64_t counts[] = {1, 3, 4, 128, 1000, 8191, 8192, 8193, 32769, 100003};
    int64_t turn = 0;
    for (const int64_t count : counts) {
        for (const Parameter parameter :
             {Parameter::master_itself, Parameter::bf16_beside_master, Parameter::f32_beside_master}) {
            for (const DType moments : {DType::f32, DType::bf16})
                layouts.push_back({count, parameter, moments, turn % 2 == 0, turn % 5 == 4 ? 1 : 0}), ++turn;
        }
    }
    return layouts;
}

// The largest difference as a share of what is allowed: `unit` of the value and, for values near zero,
// `floor`.
double share(const std::vector<float>& actual, const std::vector<float>& expected, double unit,
             double floor) {
    REQUIRE(actual.size() == expected.size());
    double worst = 0;
    for (std::size_t i = 0; i < actual.size(); ++i) {
        const double difference = std::abs(static_cast<double>(actual[i]) - expected[i]);
        const double each = difference / (unit * std::abs(expected[i]) + floor);
        worst = std::isnan(each) ? INFINITY : std::max(worst, each);
    }
    return worst;
}

void compare(const Model& device, const Model& host, const AdamW& on_device, const AdamW& on_host) {
    for (std::size_t i = 0; i < on_device.tensors.size(); ++i) {
        const TrainedTensor &a = on_device.tensors[i], &b = on_host.tensors[i];
        INFO("tensor " << i << " of " << a.gradient.elements() << " elements");
        // Four roundings of 2^-24 and their order (fused or not); bf16 may then fall to the other side, one
        // unit of 2^-7 in all. Moments are sums of terms around 0.1 and 0.01.
        const double moment_unit = a.moment1.dtype == DType::bf16 ? 0x1p-7 : 0x1p-21;
        CHECK(share(device.values(a.moment1), host.values(b.moment1), moment_unit, 1e-8) <= 1);
        CHECK(share(device.values(a.moment2), host.values(b.moment2), moment_unit, 1e-10) <= 1);
        // A step is at most a few times lr, wrong by a few roundings of its own: floor 2^-21 of 0.1.
        const Tensor& master = a.master ? a.master : a.parameter;
        const auto trained = device.values(master);
        CHECK(share(trained, host.values(b.master ? b.master : b.parameter), 0x1p-22, 5e-8) <= 1);
        if (!a.master) continue;
        std::vector<float> rounded = trained;
        if (a.parameter.dtype == DType::bf16)
            for (float& v : rounded) v = bf16_to_float(float_to_bf16(v));
        CHECK(device.values(a.parameter) == rounded);
    }
}

}  // namespace

TEST_CASE("GPU: gradient norms are those of a double, tensor by tensor", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    const auto cpu = make_cpu_backend(DType::f32, 0);
    Model device(*gpu, every_layout()), host(*cpu, every_layout());
    const auto actual = device.norms(), expected = host.norms();
    REQUIRE(actual.size() == expected.size());
    // Sums of positive terms in double, 100003 of them.
    for (std::size_t i = 0; i < actual.size(); ++i)
        CHECK(std::abs(actual[i] - expected[i]) < 1e-13 * expected[i]);
    CHECK(device.norms() == actual);
}

TEST_CASE("GPU: AdamW follows the CPU for every kind of tensor", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    const auto cpu = make_cpu_backend(DType::f32, 0);
    for (const double clip : {0.0, 1.0, 1e9}) {
        Model device(*gpu, every_layout()), host(*cpu, every_layout()), again(*gpu, every_layout());
        for (Model* model : {&device, &host, &again}) {
            model->update().clip = clip;
            model->step();
        }
        INFO("clip " << clip);
        compare(device, host, device.update(), host.update());
        CHECK(device.all() == again.all());
    }
}

TEST_CASE("GPU: AdamW over more tensors than one launch takes, some of them empty", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    const auto cpu = make_cpu_backend(DType::f32, 0);
    std::vector<Layout> layouts;
    for (int64_t i = 0; i < 1100; ++i)
        layouts.push_back(
            {i % 7 == 3 ? 0 : 1 + i % 50, Parameter::bf16_beside_master, DType::f32, i % 3 == 0});
    layouts.push_back({40000, Parameter::master_itself, DType::f32, true});
    layouts.push_back({0, Parameter::master_itself, DType::f32, true});
    Model device(*gpu, layouts), host(*cpu, layouts);
    const auto actual = device.norms(), expected = host.norms();
    bool close = true;
    for (std::size_t i = 0; i < actual.size(); ++i)
        close &= std::abs(actual[i] - expected[i]) <= 1e-13 * expected[i];
    CHECK(close);
    device.step();
    host.step();
    compare(device, host, device.update(), host.update());
}

TEST_CASE("GPU: a gradient that is not finite leaves everything as it was", "[gpu][small]") {
    Backend* gpu = cuda_backend();
    if (!gpu) return;
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
        Model device(*gpu, every_layout());
        const auto before = device.all();
        const Tensor& gradient = device.update().tensors[27].gradient;
        const int64_t last = gradient.elements() - 1;
        gpu->copy(gradient.data + last * 4, reinterpret_cast<const std::byte*>(&bad), 4);
        const auto squares = device.norms();
        for (std::size_t i = 0; i < squares.size(); ++i) CHECK(std::isfinite(squares[i]) == (i != 27));
        device.step();
        CHECK(device.all() == before);
    }
}

TEST_CASE("GPU: AdamW and gradient norms over more than 2^31 elements", "[gpu][large]") {
    Backend* gpu = cuda_backend();
    constexpr int64_t kCount = kTwoToThe31 + 5000, kRow = 1 << 16;
    if (!gpu || !has_memory(*gpu, 14 * kCount)) return;
    struct Raw {
        Backend& backend;
        Tensor tensor;
        Raw(Backend& gpu, DType dtype, int64_t count, uint64_t key) : backend(gpu) {
            tensor = Tensor(nullptr, dtype, {count}, DeviceKind::cuda);
            tensor.data = gpu.allocate(tensor.bytes());
            if (dtype != DType::f64) gpu.run(RandomNormal{.out = tensor, .key = key, .scale = 0.1});
        }
        ~Raw() { backend.free(tensor.data); }
        std::vector<float> values(int64_t begin, int64_t count) const {
            const int64_t size = bytes_of(tensor.dtype);
            std::vector<std::byte> raw(count * size);
            backend.copy(raw.data(), tensor.data + begin * size, count * size);
            std::vector<float> values(count);
            for (int64_t i = 0; i < count; ++i)
                values[i] = size == 2 ? bf16_to_float(reinterpret_cast<const uint16_t*>(raw.data())[i])
                                      : reinterpret_cast<const float*>(raw.data())[i];
            return values;
        }
    };
    const Raw parameter(*gpu, DType::f32, kCount, 1), gradient(*gpu, DType::f32, kCount, 2),
        moment1(*gpu, DType::bf16, kCount, 3), moment2(*gpu, DType::bf16, kCount, 4),
        squares(*gpu, DType::f64, 1, 0);
    gpu->zero(moment2.tensor);
    const int64_t begins[] = {0, kCount - kRow};
    std::vector<float> p[2], g[2], m1[2];
    for (int i = 0; i < 2; ++i) {
        p[i] = parameter.values(begins[i], kRow);
        g[i] = gradient.values(begins[i], kRow);
        m1[i] = moment1.values(begins[i], kRow);
    }
    AdamW update{.tensors = {{.parameter = parameter.tensor,
                              .master = {},
                              .gradient = gradient.tensor,
                              .moment1 = moment1.tensor,
                              .moment2 = moment2.tensor,
                              .decays = true}},
                 .squares = squares.tensor,
                 .learning_rate = 0.01,
                 .weight_decay = 0.1};
    gpu->run(GradientNorms{.gradients = {gradient.tensor}, .squares = squares.tensor});
    gpu->run(update);
    const double square = download_doubles(*gpu, squares.tensor)[0];
    // The sum of n squares of deviates of 0.1 is 0.01 n, give or take sqrt(2 / n) of it.
    CHECK(std::abs(square / (0.01 * kCount) - 1) < 6 * std::sqrt(2.0 / kCount));
    const auto cpu = make_cpu_backend(DType::f32, 0);
    for (int i = 0; i < 2; ++i) {
        std::vector<uint16_t> half1(kRow), half2(kRow, 0);
        for (int64_t j = 0; j < kRow; ++j) half1[j] = float_to_bf16(m1[i][j]);
        std::vector<double> one{square};
        AdamW twin = update;
        twin.tensors = {{.parameter = tensor(p[i], {kRow}),
                         .master = {},
                         .gradient = tensor(g[i], {kRow}),
                         .moment1 = Tensor(half1.data(), DType::bf16, {kRow}),
                         .moment2 = Tensor(half2.data(), DType::bf16, {kRow}),
                         .decays = true}};
        twin.squares = tensor(one, {1});
        cpu->run(twin);
        // As in compare(); a step is now up to lr * |m1| / |g| * 4.5, which is large where g is near 0.
        CHECK(norm_error(parameter.values(begins[i], kRow), p[i]) < 1e-6);
        CHECK(share(
                  moment1.values(begins[i], kRow),
                  [&] {
                      std::vector<float> v(kRow);
                      for (int64_t j = 0; j < kRow; ++j) v[j] = bf16_to_float(half1[j]);
                      return v;
                  }(),
                  0x1p-7, 1e-8) <= 1);
    }
}
