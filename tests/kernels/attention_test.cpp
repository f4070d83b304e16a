#include "tests/kernels/testing.h"

using namespace minipuzzle;
using namespace minipuzzle::testing;

namespace {

struct Case {
    int64_t batch, time, heads, kv_heads, head_dim;
    bool documents;
};

// Several documents a row, of different lengths in each sequence.
std::vector<int32_t> document_ids(int64_t batch, int64_t time) {
    std::vector<int32_t> ids(batch * time);
    for (int64_t b = 0; b < batch; ++b) {
        for (int64_t t = 0; t < time; ++t) {
            ids[b * time + t] = static_cast<int32_t>(10 + 3 * (t * (b + 2) / std::max<int64_t>(time, 3)));
        }
    }
    return ids;
}

// Inputs and outputs of one case in T.
template <class T>
struct Attention {
    Case c;
    std::vector<T> q, k, v, out, lse;
    std::vector<int32_t> document;

    explicit Attention(const Case& sizes)
        : c(sizes), out(q_count()), lse(c.batch * c.heads * c.time), document(document_ids(c.batch, c.time)) {
        Random random(11);
        q = convert<T>(random.normals(q_count(), 0, 2));
        k = convert<T>(random.normals(kv_count(), 0.5));
        v = convert<T>(random.normals(kv_count()));
    }
    int64_t q_count() const { return c.batch * c.time * c.heads * c.head_dim; }
    int64_t kv_count() const { return c.batch * c.time * c.kv_heads * c.head_dim; }
    Tensor q_view(const std::vector<T>& values) const {
        return tensor(values, {c.batch, c.time, c.heads * c.head_dim});
    }
    Tensor kv_view(const std::vector<T>& values) const {
        return tensor(values, {c.batch, c.time, c.kv_heads * c.head_dim});
    }
    Tensor document_view() const { return c.documents ? tensor(document, {c.batch, c.time}) : Tensor{}; }

    void forward(Backend& backend) {
        backend.run(AttentionForward{.heads = c.heads,
                                     .kv_heads = c.kv_heads,
                                     .head_dim = c.head_dim,
                                     .q = q_view(q),
                                     .k = kv_view(k),
                                     .v = kv_view(v),
                                     .document = document_view(),
                                     .out = q_view(out),
                                     .lse = tensor(lse, {c.batch, c.heads, c.time})});
    }
};

// The definition, one query and head at a time.
void naive_forward(Attention<double>& a) {
    const Case& c = a.c;
    const int64_t width = c.heads * c.head_dim, kv_width = c.kv_heads * c.head_dim;
    for (int64_t b = 0; b < c.batch; ++b) {
        for (int64_t h = 0; h < c.heads; ++h) {
            const int64_t kv = h * c.kv_heads / c.heads;
            for (int64_t t = 0; t < c.time; ++t) {
                const double* q = &a.q[(b * c.time + t) * width + h * c.head_dim];
                double* out = &a.out[(b * c.time + t) * width + h * c.head_dim];
                std::fill_n(out, c.head_dim, 0.0);
                double sum = 0;
                for (int64_t s = 0; s <= t; ++s) {
                    if (c.documents && a.document[b * c.time + s] != a.document[b * c.time + t]) continue;
                    const int64_t at = (b * c.time + s) * kv_width + kv * c.head_dim;
                    double score = 0;
                    for (int64_t p = 0; p < c.head_dim; ++p) score += q[p] * a.k[at + p];
                    const double e = std::exp(score / std::sqrt(static_cast<double>(c.head_dim)));
                    sum += e;
                    for (int64_t p = 0; p < c.head_dim; ++p) out[p] += e * a.v[at + p];
                }
                for (int64_t p = 0; p < c.head_dim; ++p) out[p] /= sum;
                a.lse[(b * c.heads + h) * c.time + t] = std::log(sum);
            }
        }
    }
}

// 129 and 300 cross the edge of a query block; 1 is a lone token.
Case any_case() {
    return GENERATE(Case{1, 1, 1, 1, 1, false}, Case{2, 5, 4, 2, 3, true}, Case{2, 129, 3, 1, 8, false},
                    Case{1, 300, 2, 2, 5, true});
}

}  // namespace

TEMPLATE_TEST_CASE("attention follows its definition", "", float, double) {
    const Case c = any_case();
    Attention<double> expected(c);
    naive_forward(expected);
    Attention<TestType> actual(c);
    actual.forward(*make_cpu_backend(DTypeOf<TestType>::value, 2));
    // Scores of order 10 are rounded before exp: 10 roundings of the type and a few more in the sums.
    const double tolerance = 32 * std::numeric_limits<TestType>::epsilon();
    CHECK(relative_error(actual.out, expected.out) < tolerance);
    CHECK(relative_error(actual.lse, expected.lse) < tolerance);
}

TEST_CASE("attention's gradients match central differences") {
    const Case c = any_case();
    Attention<double> a(c);
    const auto cpu = make_cpu_backend(DType::f64, 2);
    Random random(12);
    const auto d_out = random.normals(a.q_count());
    std::vector<double> d_q(a.q_count(), 3.0), d_k(a.kv_count(), 3.0), d_v(a.kv_count(), 3.0);
    a.forward(*cpu);
    cpu->run(AttentionBackward{.heads = c.heads,
                               .kv_heads = c.kv_heads,
                               .head_dim = c.head_dim,
                               .q = a.q_view(a.q),
                               .k = a.kv_view(a.k),
                               .v = a.kv_view(a.v),
                               .document = a.document_view(),
                               .out = a.q_view(a.out),
                               .lse = tensor(a.lse, {c.batch, c.heads, c.time}),
                               .d_out = a.q_view(d_out),
                               .d_q = a.q_view(d_q),
                               .d_k = a.kv_view(d_k),
                               .d_v = a.kv_view(d_v)});
    const auto loss = [&] {
        a.forward(*cpu);
        return weighted_sum(d_out, a.out);
    };
    if (c.time > 1) {  // a lone token attends to itself whatever the scores: both gradients are 0
        CHECK(gradient_error(a.q, d_q, loss) < 1e-7);
        CHECK(gradient_error(a.k, d_k, loss) < 1e-7);
    } else {
        CHECK(d_q == std::vector<double>(d_q.size(), 0.0));
    }
    CHECK(gradient_error(a.v, d_v, loss) < 1e-7);
}

TEST_CASE("attention in a packed document equals attention in the document alone") {
    constexpr int64_t kFirst = 40, kTime = 100;
    Attention<double> packed(Case{1, kTime, 2, 1, 4, true});
    for (int64_t t = 0; t < kTime; ++t) packed.document[t] = t >= kFirst;
    Attention<double> alone(Case{1, kTime - kFirst, 2, 1, 4, false});
    alone.q.assign(packed.q.begin() + kFirst * 8, packed.q.end());
    alone.k.assign(packed.k.begin() + kFirst * 4, packed.k.end());
    alone.v.assign(packed.v.begin() + kFirst * 4, packed.v.end());
    const auto cpu = make_cpu_backend(DType::f64, 1);
    packed.forward(*cpu);
    alone.forward(*cpu);
    CHECK(relative_error(std::vector<double>(packed.out.begin() + kFirst * 8, packed.out.end()), alone.out) <
          1e-14);
}

TEST_CASE("attention keeps large scores finite and passes NaN on") {
    Attention<float> a(Case{1, 20, 1, 1, 4, false});
    for (float& q : a.q) q *= 1e4f;
    const auto cpu = make_cpu_backend(DType::f32, 1);
    a.forward(*cpu);
    CHECK(std::all_of(a.out.begin(), a.out.end(), [](float x) { return std::isfinite(x); }));
    a.k[5 * 4] = std::numeric_limits<float>::quiet_NaN();
    a.forward(*cpu);
    CHECK(std::isfinite(a.out[4 * 4]));
    CHECK(std::isnan(a.out[5 * 4]));
}
