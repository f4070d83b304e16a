// The two LAPACK routines that COIN-OR's archives call, for small dense factors inside its simplex method.
// Own ones add in one order on every machine and bring no library with threads of its own. Interfaces as
// LAPACK documents them: columns first, pivots counted from 1.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>

namespace {

// A column-major matrix with leading dimension `stride`.
struct Columns {
    double* data;
    std::ptrdiff_t stride;
    double& operator()(int row, int column) const { return data[row + stride * column]; }
};

void swap_rows(const Columns& a, int first, int second, int columns) {
    if (first == second) return;
    for (int c = 0; c < columns; ++c) std::swap(a(first, c), a(second, c));
}

// Solves with the triangle of a factored matrix, column by column of b: L (unit diagonal) or U, or a
// transpose.
void solve_lower(const Columns& lu, int n, double* b) {
    for (int c = 0; c < n; ++c)
        for (int r = c + 1; r < n; ++r) b[r] -= lu(r, c) * b[c];
}
void solve_upper(const Columns& lu, int n, double* b) {
    for (int c = n; c-- > 0;) {
        b[c] /= lu(c, c);
        for (int r = 0; r < c; ++r) b[r] -= lu(r, c) * b[c];
    }
}
void solve_upper_transposed(const Columns& lu, int n, double* b) {
    for (int r = 0; r < n; ++r) {
        for (int c = 0; c < r; ++c) b[r] -= lu(c, r) * b[c];
        b[r] /= lu(r, r);
    }
}
void solve_lower_transposed(const Columns& lu, int n, double* b) {
    for (int r = n; r-- > 0;)
        for (int c = r + 1; c < n; ++c) b[r] -= lu(c, r) * b[c];
}

}  // namespace

extern "C" {

// P A = L U of an m x n matrix with partial pivoting, in place. info > 0: that pivot is exactly zero.
void dgetrf_(const int* m, const int* n, double* a, const int* lda, int* pivots, int* info) {
    const Columns lu{a, *lda};
    *info = 0;
    for (int k = 0; k < std::min(*m, *n); ++k) {
        int pivot = k;
        for (int r = k + 1; r < *m; ++r)
            if (std::abs(lu(r, k)) > std::abs(lu(pivot, k))) pivot = r;
        pivots[k] = pivot + 1;
        swap_rows(lu, k, pivot, *n);
        if (lu(k, k) == 0) {
            if (*info == 0) *info = k + 1;
            continue;
        }
        for (int r = k + 1; r < *m; ++r) lu(r, k) /= lu(k, k);
        for (int c = k + 1; c < *n; ++c)
            for (int r = k + 1; r < *m; ++r) lu(r, c) -= lu(r, k) * lu(k, c);
    }
}

// Solves A X = B, or A^T X = B where `trans` is not 'N', from dgetrf's factors; X replaces B.
void dgetrs_(const char* trans, const int* n, const int* columns, const double* a, const int* lda,
             const int* pivots, double* b, const int* ldb, int* info) {
    const Columns lu{const_cast<double*>(a), *lda};
    const Columns x{b, *ldb};
    *info = 0;
    const bool transposed = *trans != 'N' && *trans != 'n';
    if (!transposed)
        for (int k = 0; k < *n; ++k) swap_rows(x, k, pivots[k] - 1, *columns);
    for (int c = 0; c < *columns; ++c) {
        double* column = &x(0, c);
        if (transposed) {
            solve_upper_transposed(lu, *n, column);
            solve_lower_transposed(lu, *n, column);
        } else {
            solve_lower(lu, *n, column);
            solve_upper(lu, *n, column);
        }
    }
    if (transposed)
        for (int k = *n; k-- > 0;) swap_rows(x, k, pivots[k] - 1, *columns);
}

}  // extern "C"
