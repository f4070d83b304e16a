// The list of operations. Per operation one Args struct: its maths in a sentence, shapes, what may alias,
// what accumulates. A Backend (backend.h) has one virtual function per struct; `validate` checks shapes and
// dtypes.
//
// Letters: B batch (independent sequences), T time, R rows = B*T, D width, H heads, K kv heads, P head dim, N
// state, G groups, F ffn, V vocab. Row-major, last axis fastest.
//
// Element types: "floating" is the backend's compute type (float32 on the CPU, double in gradient checks,
// bf16 on CUDA): activations and matrices. "precise" is float32, or double beside double: norm weights,
// A_log, D, dt_bias, scan states, lse, per-token statistics. What is not said to be precise is floating.
// Arithmetic between them is never narrower than precise; results are rounded once, when stored.
//
// "Quantised" is f8_e4m3 (E4M3: 4 bits of exponent, 3 of mantissa, finite up to 448) with one precise scale
// per row, [rows]: value = code * scale. A row's scale is that of its own values alone (QuantizeRows), so its
// bits depend on that row alone. Precise then means beside the operation's floating type.
//
// Gradients have their parameter's shape. Gradients of parameters are precise and always accumulate (+=),
// across micro-batches too; gradients of activations overwrite unless said otherwise. A Tensor that is not
// given (`!tensor`) is skipped where the comment says "optional".
//
// Bits: a sequence's results depend on that sequence alone, never on B, on its place in the batch or on the
// number of threads. Sums over tokens run in a fixed order.
//
// Documents: `document` is [B, T] i32, non-decreasing along T; tokens of different documents in a row do not
// see each other (attention mask, scan state and conv taps reset). Not given: every row is one document.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/tensor.h"

namespace minipuzzle {

// ---- embedding, norms, products, element-wise

// out[r, :] = weight[tokens[r], :].
struct EmbeddingForward {
    Tensor tokens;  // [B, T] i32, each in [0, V)
    Tensor weight;  // [V, D]
    Tensor out;     // [B, T, D]
};
// d_weight[tokens[r], :] += d_out[r, :], tokens visited in order.
struct EmbeddingBackward {
    Tensor tokens;    // [B, T] i32
    Tensor d_out;     // [B, T, D]
    Tensor d_weight;  // [V, D] precise, accumulates
};

// out = weight * x * rsqrt(mean(x^2) + eps), over the last axis (Zhang & Sennrich 2019).
struct RmsNormForward {
    Tensor x;       // [B, T, D]
    Tensor weight;  // [D] precise
    double eps = 1e-5;
    Tensor out;        // [B, T, D]; may be x. Or quantised, from values that were not rounded before
    Tensor out_scale;  // [R] precise, overwritten: where out is quantised
};
struct RmsNormBackward {
    Tensor x;       // [B, T, D], the forward input
    Tensor weight;  // [D] precise
    double eps = 1e-5;
    Tensor d_out;     // [B, T, D]
    Tensor d_x;       // [B, T, D]; accumulates (the residual's gradient already lies there)
    Tensor d_weight;  // [D] precise, accumulates; optional
};

// scale[r] = max_i |x[r, i]| / 448, at least 2^-126, and 1 where the row is zero; out[r, i] = x[r, i] *
// (1 / scale[r]), rounded to the nearest E4M3, ties to even (current scaling of Micikevicius et al. 2022,
// "FP8 formats for deep learning", section 3, by rows). A row that holds NaN or an infinity becomes NaN
// throughout.
struct QuantizeRows {
    Tensor x;      // [B, T, I] or [O, I]
    Tensor out;    // as x, quantised
    Tensor scale;  // [rows] precise, overwritten
};

// out = x * weight^T, plus the residual where given. Where x and weight are quantised (both are, or neither):
// out = (sum_i of products of codes) * x_scale[r] * weight_scale[o], plus the residual.
struct LinearForward {
    Tensor x;             // [B, T, I]
    Tensor weight;        // [O, I]
    Tensor residual;      // [B, T, O], optional
    Tensor out;           // [B, T, O]; may be residual. Precise where the accumulator's own digits are wanted
    Tensor x_scale;       // [R] precise: of a quantised x
    Tensor weight_scale;  // [O] precise: of a quantised weight
};
// d_x = d_out * weight; d_weight += d_out^T * x. Both optional.
struct LinearBackward {
    Tensor x;                      // [B, T, I]; needed for d_weight
    Tensor weight;                 // [O, I]; needed for d_x
    Tensor d_out;                  // [B, T, O]
    Tensor d_x;                    // [B, T, I]
    bool d_x_accumulates = false;  // d_x += instead: of several products with one x
    Tensor d_weight;               // [O, I] precise, accumulates
};

// out = relu(x)^2.
struct SquaredReluForward {
    Tensor x;          // [B, T, F]
    Tensor out;        // may be x. Or quantised, from values that were not rounded before
    Tensor out_scale;  // [R] precise, overwritten: where out is quantised
};
// d_x = 2 relu(x) d_out.
struct SquaredReluBackward {
    Tensor x;      // the forward input
    Tensor d_out;  // [B, T, F]
    Tensor d_x;    // may be d_out
};

// out = a + b.
struct Add {
    Tensor a, b, out;  // same shape; out may be a or b
};

// ---- Mamba-2 mixer (Dao & Gu 2024, "Transformers are SSMs", section 6: the chunked SSD algorithm)

// Sizes of one mixer. inner() = H*P; conv_channels() = H*P + 2*G*N laid out x | B | C;
// projection() = 2*H*P + 2*G*N + H laid out z | x | B | C | dt. Head h reads group h / (H/G).
struct MambaShape {
    int64_t heads = 0, head_dim = 0, state = 0, groups = 0, conv_kernel = 0;
    int64_t inner() const { return heads * head_dim; }
    int64_t conv_channels() const { return inner() + 2 * groups * state; }
    int64_t projection() const { return inner() + conv_channels() + heads; }
    bool operator==(const MambaShape&) const = default;
};

// xbc[t, c] = silu(bias[c] + sum_k weight[c, k] * v[t - (Kc-1) + k, c]) with v the x|B|C part of zxbcdt;
// positions before the row read initial_state (zero where not given); taps into another document are dropped.
struct ConvForward {
    MambaShape shape;
    Tensor zxbcdt;         // [B, T, projection]
    Tensor weight;         // [conv_channels, Kc]; the last tap multiplies the current token
    Tensor bias;           // [conv_channels], optional
    Tensor document;       // [B, T] i32, optional
    Tensor initial_state;  // [B, conv_channels, Kc-1] pre-conv values of the preceding tokens, optional
    Tensor xbc;            // [B, T, conv_channels]
    Tensor final_state;    // [B, conv_channels, Kc-1], optional; counts initial_state when T < Kc-1
};
struct ConvBackward {
    MambaShape shape;
    Tensor zxbcdt, weight, bias, document, initial_state;  // as forward
    Tensor d_xbc;                                          // [B, T, conv_channels]
    Tensor d_zxbcdt;          // [B, T, projection]; the x|B|C part is overwritten, the rest untouched
    Tensor d_weight, d_bias;  // precise, accumulate; d_bias optional
    Tensor d_initial_state;   // [B, conv_channels, Kc-1], overwritten; optional
};

// The selective state space scan, state S[h] in R^{P x N}:
//   delta = clamp(softplus(dt + dt_bias), dt_min, dt_max);  A = -exp(A_log)
//   S_t = exp(delta_t A) S_{t-1} + delta_t x_t (outer) B_t;  y_t = S_t C_t + D x_t
// computed in chunks. A document boundary resets S to zero. softplus(v) = v for v > 20, else log1p(exp(v)).
struct SsdForward {
    MambaShape shape;
    int64_t chunk = 128;                // the kernel's choice of chunk; changes rounding only
    double dt_min = 0.0, dt_max = 0.0;  // time_step_limit; dt_max may be infinity
    Tensor xbc;                         // [B, T, conv_channels], after conv and SiLU
    Tensor zxbcdt;                      // [B, T, projection]; only its dt part is read
    Tensor dt_bias, a_log, d;           // [H] precise
    Tensor document;                    // [B, T] i32, optional
    Tensor initial_state;  // [B, H, P, N] precise, optional; belongs to the first document of the row
    Tensor y;              // [B, T, inner], laid out [H, P]
    Tensor final_state;    // [B, H, P, N] precise, optional
    Tensor chunk_states;   // [B, ceil(T/chunk) * H, P, N] precise, the state entering each chunk; optional,
                           // kept for backward
};
struct SsdBackward {
    MambaShape shape;
    int64_t chunk = 128;
    double dt_min = 0.0, dt_max = 0.0;
    Tensor xbc, zxbcdt, dt_bias, a_log, d, document, initial_state;  // as forward
    Tensor chunk_states;             // as left by the forward with the same chunk
    Tensor d_y;                      // [B, T, inner]
    Tensor d_final_state;            // [B, H, P, N] precise, optional
    Tensor d_xbc;                    // [B, T, conv_channels], overwritten
    Tensor d_zxbcdt;                 // [B, T, projection]; the dt part is overwritten, the rest untouched
    Tensor d_dt_bias, d_a_log, d_d;  // [H] precise, accumulate
    Tensor d_initial_state;          // [B, H, P, N] precise, overwritten; optional
};

// Gate first, then RMS over each of G contiguous groups of inner/G channels:
// q = y * silu(z); out = weight * q * rsqrt(mean_group(q^2) + eps). z is the first part of zxbcdt.
struct GatedNormForward {
    MambaShape shape;
    Tensor y;       // [B, T, inner]
    Tensor zxbcdt;  // [B, T, projection]
    Tensor weight;  // [inner] precise
    double eps = 1e-5;
    Tensor out;        // [B, T, inner]; may be y. Or quantised, from values that were not rounded before
    Tensor out_scale;  // [R] precise, overwritten: where out is quantised
};
struct GatedNormBackward {
    MambaShape shape;
    Tensor y, zxbcdt, weight;  // as forward
    double eps = 1e-5;
    Tensor d_out;     // [B, T, inner]
    Tensor d_y;       // [B, T, inner]; may be d_out
    Tensor d_zxbcdt;  // the z part is overwritten, the rest untouched
    Tensor d_weight;  // [inner] precise, accumulates
};

// ---- attention

// Causal grouped-query attention without position encoding: out = softmax(q k^T / sqrt(P), causal, same
// document) v; query head i reads kv head i / (H/K). lse[b, h, t] = log sum exp of the scaled scores.
struct AttentionForward {
    int64_t heads = 0, kv_heads = 0, head_dim = 0;
    Tensor q;         // [B, T, H*P]
    Tensor k, v;      // [B, T, K*P]
    Tensor document;  // [B, T] i32, optional
    Tensor out;       // [B, T, H*P]
    Tensor lse;       // [B, H, T] precise, optional; needed by backward
};
struct AttentionBackward {
    int64_t heads = 0, kv_heads = 0, head_dim = 0;
    bool deterministic = true;  // false: sums may run in another order each time, where that is faster
    Tensor q, k, v, document, out, lse;  // as forward
    Tensor d_out;                        // [B, T, H*P]
    Tensor d_q, d_k, d_v;                // overwritten
};

// ---- vocabulary losses: logits live one token chunk at a time

// One model's last hidden states (after the final norm) and its LM head: logits = hidden * head^T.
struct LmHead {
    Tensor hidden;  // [R, D]
    Tensor head;    // [V, D]
};

// Per token r with target y: ce = -log p(y); kl = T^2 * KL(teacher || student) and reverse_kl = T^2 *
// KL(student || teacher), both models softened by temperature T. With top_k > 0 the teacher's distribution is
// its top_k likeliest tokens, normalised among themselves (those whose logits, as computed, equal the last of
// them count too; top_k >= V: all tokens); the student's stays whole, and there is no reverse KL: its weight
// must be 0 and `reverse_kl` is left untouched. loss = sum over tokens with target >= 0 of
// scale * (ce_weight * ce + kl_weight * kl + reverse_kl_weight * reverse_kl). Gradients of that loss are
// written for the student only; with q the student's and p the teacher's softened probabilities
//   d kl / d logit_i = T * (q_i - p_i),  p_i = 0 for tokens that do not count
//   d reverse_kl / d logit_i = T * q_i * (log q_i - log p_i - KL(q || p))
// Forward only when neither gradient is given. kl and reverse_kl that rounding made negative are 0. Logits
// come from the accumulator and are never rounded to the floating type; their gradient is, once.
struct VocabularyLoss {
    LmHead student;
    LmHead teacher;  // not given: kl and reverse_kl are left untouched and both their weights must be 0
    Tensor targets;  // [R] i32; negative: the token is masked
    int64_t sequence_length = 0;  // rows of one sequence, which must divide R; 0: all rows are one sequence
    double ce_weight = 0, kl_weight = 1, reverse_kl_weight = 0, temperature = 1, scale = 1;
    int64_t top_k = 0;          // 0: all of the teacher's tokens
    Tensor ce, kl, reverse_kl;  // [R] precise, per token, 0 where masked; each optional
    Tensor d_hidden;            // [R, D], overwritten; optional
    Tensor d_head;              // [V, D] precise, accumulates; optional
};

// Statistics of one variant against a base, per token; every output is [R] precise and optional; masked rows
// give 0.
struct LogitsComparison {
    LmHead variant;
    Tensor loss;        // -log p(target)
    Tensor correct;     // 1 where argmax = target (ties: lowest index)
    Tensor kl;          // KL(base || variant)
    Tensor agrees;      // 1 where argmax equals the base's argmax
    Tensor error;       // sum_v (z - z_base)^2
    Tensor hidden_mse;  // mean over D of (hidden - base hidden)^2
    Tensor cosine;      // cos(hidden, base hidden)
};
// The base's logits, log-sum-exp and argmax are formed once per token chunk, then every variant is held
// against them.
struct CompareLogits {
    LmHead base;
    Tensor targets;               // [R] i32; negative: masked
    int64_t sequence_length = 0;  // rows of one sequence, which must divide R; 0: all rows are one sequence
    Tensor base_loss;             // [R] precise, optional
    Tensor base_correct;          // [R] precise, optional
    Tensor base_power;            // [R] precise, sum_v z_base^2, optional
    std::vector<LogitsComparison> variants;
};

// ---- feature losses (Puzzle, arXiv 2411.19146: cosine; FitNets-style normalised MSE)

enum class FeatureKind { cosine, mse };
// cosine: per token 1 - cos(student, teacher); mse: per token |student - teacher|^2 / |teacher|^2.
// value[r] is the unscaled per-token term (0 where masked); d_student += scale * d(sum of terms). Against a
// zero vector the cosine counts as 0 and, for a zero teacher, the mse term as 0, both without gradient.
struct FeatureLoss {
    FeatureKind kind = FeatureKind::cosine;
    Tensor student, teacher;  // [R, D]
    Tensor targets;           // [R] i32; negative: masked; optional
    double scale = 1;
    Tensor value;      // [R] precise, optional
    Tensor d_student;  // [R, D], accumulates; optional
};

// ---- statistics, optimiser

// out[b, n] = sum over t of r or, squared, of r^2, where r is the L2 norm of channels [first + n P,
// first + (n + 1) P) of x[b, t, :]: how active a unit of P channels (a neuron, a head) is in a sequence.
struct ActivationSums {
    Tensor x;              // [B, T, C]
    int64_t first = 0;     // channel that unit 0 begins at
    int64_t channels = 1;  // P
    bool squared = false;
    Tensor out;  // [B, N] precise, overwritten; first + N P is at most C
};
// total[n] += sum over b of (scale * x[b, n])^power, in double and in the order of b: a sum over sequences
// that does not depend on how they were batched.
struct AccumulatePowers {
    Tensor x;                     // [B, N] precise, not negative
    double scale = 1, power = 1;  // power 1/2, 1 or 2
    Tensor total;                 // [N] f64, accumulates
};

// out[0] = sum of squares, in double, fixed order; not finite where an element is not.
struct SquaredNorm {
    Tensor x;               // floating or precise
    double* out = nullptr;  // host memory, valid on return
};

// out[i] = scale * normal(key, i), the counter-based deviates of kernels/random.h.
struct RandomNormal {
    Tensor out;  // floating or precise
    uint64_t key = 0;
    double scale = 1;
};

// squares[i] = sum of squares of gradients[i], in double, fixed order; not finite where an element is not.
// All tensors in few launches, nothing waits for the host.
struct GradientNorms {
    std::vector<Tensor> gradients;  // each precise
    Tensor squares;                 // [number of gradients] f64
};

// One parameter under training.
struct TrainedTensor {
    Tensor parameter;  // what the model computes with, floating or precise
    Tensor master;     // precise: the value that is trained; not given where the parameter itself is precise
    Tensor gradient;   // precise
    Tensor moment1, moment2;  // precise, or both bf16 (rounded to nearest when stored)
    bool decays = false;      // weight decay applies
};

// AdamW (Loshchilov & Hutter 2019) with bias correction and decoupled decay, all tensors in few launches:
//   g = gradient * min(1, clip / norm), norm = sqrt(sum of squares); clip 0: g = gradient
//   m1 = beta1 m1 + (1 - beta1) g;  m2 = beta2 m2 + (1 - beta2) g^2
//   master = (1 - lr decay) master - lr m1' / (sqrt(m2') + eps),  m1', m2' bias-corrected;  parameter =
//   master, rounded
// Where the norm is not finite nothing is changed at all; the host learns of it from `squares`.
struct AdamW {
    std::vector<TrainedTensor> tensors;
    Tensor squares;  // as GradientNorms left them for the same tensors
    double learning_rate = 0, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0, clip = 0;
    int64_t step = 1;  // updates made so far, this one included
};

void validate(const EmbeddingForward&);
void validate(const EmbeddingBackward&);
void validate(const RmsNormForward&);
void validate(const RmsNormBackward&);
void validate(const QuantizeRows&);
void validate(const LinearForward&);
void validate(const LinearBackward&);
void validate(const SquaredReluForward&);
void validate(const SquaredReluBackward&);
void validate(const Add&);
void validate(const ConvForward&);
void validate(const ConvBackward&);
void validate(const SsdForward&);
void validate(const SsdBackward&);
void validate(const GatedNormForward&);
void validate(const GatedNormBackward&);
void validate(const AttentionForward&);
void validate(const AttentionBackward&);
void validate(const VocabularyLoss&);
void validate(const CompareLogits&);
void validate(const FeatureLoss&);
void validate(const ActivationSums&);
void validate(const AccumulatePowers&);
void validate(const SquaredNorm&);
void validate(const RandomNormal&);
void validate(const GradientNorms&);
void validate(const AdamW&);

}  // namespace minipuzzle
