#include "kernels/cpu/blocks.h"
#include "kernels/cpu/lanes.h"

namespace minipuzzle::cpu {
inline namespace MINIPUZZLE_ISA {

namespace {

constexpr int64_t kRows = 64;

// A row's term and its gradient a * student + b * teacher.
struct FeatureTerm {
    double value, student, teacher;
};

// 1 - cos(s, t); its gradient is s (s.t) / (|s|^3 |t|) - t / (|s| |t|).
FeatureTerm cosine_term(double inner, double student, double teacher) {
    if (student == 0 || teacher == 0) return {1, 0, 0};
    const double norms = std::sqrt(student) * std::sqrt(teacher), cosine = inner / norms;
    return {1 - cosine, cosine / student, -1 / norms};
}

// |s - t|^2 / |t|^2.
FeatureTerm mse_term(double difference, double teacher) {
    if (teacher == 0) return {0, 0, 0};
    return {difference / teacher, 2 / teacher, -2 / teacher};
}

template <class T>
FeatureTerm row_term(FeatureKind kind, const T* student, const T* teacher, int64_t width) {
    const double teacher_square = dot_lanes(teacher, teacher, width);
    if (kind == FeatureKind::cosine) {
        return cosine_term(dot_lanes(student, teacher, width), dot_lanes(student, student, width),
                           teacher_square);
    }
    const T difference = sum_lanes<T>(width, [&](int64_t i, auto lanes) -> Lanes<T> {
        return (lanes.load(student + i) - lanes.load(teacher + i)).square();
    });
    return mse_term(difference, teacher_square);
}

}  // namespace

template <class T>
void CpuBackend<T>::run(const FeatureLoss& args) {
    validate(args);
    const int64_t width = args.student.columns();
    for_blocks(pool_, args.student.size(0), kRows, [&](Block rows) {
        for (int64_t r = rows.begin; r < rows.end(); ++r) {
            const bool masked = args.targets && args.targets.as<int32_t>()[r] < 0;
            const T *student = args.student.as<T>() + r * width, *teacher = args.teacher.as<T>() + r * width;
            const FeatureTerm term =
                masked ? FeatureTerm{0, 0, 0} : row_term(args.kind, student, teacher, width);
            if (args.value) args.value.as<T>()[r] = static_cast<T>(term.value);
            if (!args.d_student || masked) continue;
            T* d_student = args.d_student.as<T>() + r * width;
            const T a = static_cast<T>(args.scale * term.student);
            const T b = static_cast<T>(args.scale * term.teacher);
            for (int64_t i = 0; i < width; ++i) d_student[i] += a * student[i] + b * teacher[i];
        }
    });
}

#define MINIPUZZLE_INSTANTIATE(T) template void CpuBackend<T>::run(const FeatureLoss& args);
MINIPUZZLE_INSTANTIATE(float)
MINIPUZZLE_INSTANTIATE(double)

}  // namespace MINIPUZZLE_ISA
}  // namespace minipuzzle::cpu
