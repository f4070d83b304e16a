// A backend that stores what a CUDA device stores: floating tensors in bf16, rounded once when an operation
// writes them, precise ones in float32. The CPU backend computes, on widened copies.
#pragma once

#include <functional>
#include <list>
#include <vector>

#include "kernels/backend.h"
#include "kernels/measuring_backend.h"

namespace minipuzzle::test {

class Bf16Backend final : public Backend {
  public:
    // Called with every GradientNorms before it runs, counted from 1: may spoil the gradients.
    std::function<void(int64_t number, const GradientNorms&)> before_norms;

    std::string name() const override { return "bf16 in tests"; }
    DeviceKind device() const override { return DeviceKind::cpu; }
    DType compute_type() const override { return DType::bf16; }
    std::byte* allocate(int64_t bytes) override { return cpu_->allocate(bytes); }
    void free(std::byte* memory) noexcept override { cpu_->free(memory); }
    int64_t available() const override { return cpu_->available(); }
    std::byte* allocate_pinned(int64_t bytes) override { return cpu_->allocate(bytes); }
    void free_pinned(std::byte* memory) noexcept override { cpu_->free(memory); }
    void copy(std::byte* to, const std::byte* from, int64_t bytes) override { cpu_->copy(to, from, bytes); }
    std::unique_ptr<CopyQueue> make_copy_queue() override { return cpu_->make_copy_queue(); }
    void zero(const Tensor& tensor) override { cpu_->zero(tensor); }
    void synchronize() override {}
    double elapsed_ms(const std::function<void()>& operations) override {
        return cpu_->elapsed_ms(operations);
    }
    std::unique_ptr<Backend> measuring() const override {
        return make_measuring_backend(DType::bf16, DeviceKind::cpu);
    }
    void reserve_scratch(int64_t) override {}

    void run(const EmbeddingForward& a) override {
        widened(a, [](auto& w) { return list(w.weight, w.out); });
    }
    void run(const EmbeddingBackward& a) override {
        widened(a, [](auto& w) { return list(w.d_out); });
    }
    void run(const RmsNormForward& a) override {
        widened(a, [](auto& w) { return list(w.x, w.out); });
    }
    void run(const RmsNormBackward& a) override {
        widened(a, [](auto& w) { return list(w.x, w.d_out, w.d_x); });
    }
    void run(const QuantizeRows& a) override {
        widened(a, [](auto& w) { return list(w.x); });
    }
    void run(const LinearForward& a) override {
        widened(a, [](auto& w) { return list(w.x, w.weight, w.residual, w.out); });
    }
    void run(const LinearBackward& a) override {
        widened(a, [](auto& w) { return list(w.x, w.weight, w.d_out, w.d_x); });
    }
    void run(const SquaredReluForward& a) override {
        widened(a, [](auto& w) { return list(w.x, w.out); });
    }
    void run(const SquaredReluBackward& a) override {
        widened(a, [](auto& w) { return list(w.x, w.d_out, w.d_x); });
    }
    void run(const Add& a) override {
        widened(a, [](auto& w) { return list(w.a, w.b, w.out); });
    }
    void run(const ConvForward& a) override {
        widened(a, [](auto& w) { return list(w.zxbcdt, w.weight, w.bias, w.xbc); });
    }
    void run(const ConvBackward& a) override {
        widened(a, [](auto& w) { return list(w.zxbcdt, w.weight, w.bias, w.d_xbc, w.d_zxbcdt); });
    }
    void run(const SsdForward& a) override {
        widened(a, [](auto& w) { return list(w.xbc, w.zxbcdt, w.y); });
    }
    void run(const SsdBackward& a) override {
        widened(a, [](auto& w) { return list(w.xbc, w.zxbcdt, w.d_y, w.d_xbc, w.d_zxbcdt); });
    }
    void run(const GatedNormForward& a) override {
        widened(a, [](auto& w) { return list(w.y, w.zxbcdt, w.out); });
    }
    void run(const GatedNormBackward& a) override {
        widened(a, [](auto& w) { return list(w.y, w.zxbcdt, w.d_out, w.d_y, w.d_zxbcdt); });
    }
    void run(const AttentionForward& a) override {
        widened(a, [](auto& w) { return list(w.q, w.k, w.v, w.out); });
    }
    void run(const AttentionBackward& a) override {
        widened(a, [](auto& w) { return list(w.q, w.k, w.v, w.out, w.d_out, w.d_q, w.d_k, w.d_v); });
    }
    void run(const VocabularyLoss& a) override {
        widened(a, [](auto& w) {
            return list(w.student.hidden, w.student.head, w.teacher.hidden, w.teacher.head, w.d_hidden);
        });
    }
    void run(const CompareLogits& a) override { validate(a); }
    void run(const FeatureLoss& a) override {
        widened(a, [](auto& w) { return list(w.student, w.teacher, w.d_student); });
    }
    void run(const ActivationSums& a) override {
        widened(a, [](auto& w) { return list(w.x); });
    }
    void run(const AccumulatePowers& a) override { cpu_->run(a); }
    void run(const SquaredNorm& a) override {
        widened(a, [](auto& w) { return list(w.x); });
    }
    void run(const RandomNormal& a) override {
        widened(a, [](auto& w) { return list(w.out); });
    }
    void run(const GradientNorms& a) override {
        if (before_norms) before_norms(++norms_, a);
        cpu_->run(a);
    }
    void run(const AdamW& a) override { cpu_->run(a); }

  private:
    template <class... Tensors>
    static std::vector<Tensor*> list(Tensors&... tensors) {
        return {&tensors...};
    }
    static std::size_t count(const Tensor& tensor) { return static_cast<std::size_t>(tensor.elements()); }

    // Runs on float32 copies of the floating tensors that `floating` lists, outputs last: they are written
    // back in that order, so that an output wins over the input whose memory it shares.
    template <class Args, class Floating>
    void widened(const Args& args, Floating floating) {
        validate(args);
        Args wide = args;
        std::list<std::vector<float>> copies;
        std::vector<std::pair<Tensor, Tensor>> changed;
        for (Tensor* tensor : floating(wide)) {
            if (!*tensor || tensor->dtype != DType::bf16) continue;
            const Tensor narrow = *tensor;
            const auto* from = reinterpret_cast<const uint16_t*>(narrow.data);
            std::vector<float>& values = copies.emplace_back(count(narrow));
            for (std::size_t i = 0; i < values.size(); ++i) values[i] = bf16_to_float(from[i]);
            tensor->data = reinterpret_cast<std::byte*>(values.data());
            tensor->dtype = DType::f32;
            changed.emplace_back(narrow, *tensor);
        }
        cpu_->run(wide);
        for (const auto& [narrow, values] : changed) {
            auto* to = reinterpret_cast<uint16_t*>(narrow.data);
            const float* from = values.template as<float>();
            for (std::size_t i = 0; i < count(narrow); ++i) to[i] = float_to_bf16(from[i]);
        }
    }

    std::unique_ptr<Backend> cpu_ = make_cpu_backend(DType::f32, 1);
    int64_t norms_ = 0;
};

}  // namespace minipuzzle::test
