// Errors: the user's fault (Error, one line, an exit code) and our own bugs (MP_ASSERT, InternalError).
#pragma once

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

namespace minipuzzle {

// What went wrong, as the program's exit code (main alone turns one into the other).
enum class ErrorKind { other = 1, usage = 2, bad_input = 3, infeasible = 4, out_of_memory = 5 };

// The user's fault: a file, a flag, a shape, a budget. `what()` is one line that says what was found, what
// was expected, where, and what to do.
class Error : public std::runtime_error {
  public:
    Error(ErrorKind kind, const std::string& what) : std::runtime_error(what), kind_(kind) {}
    ErrorKind kind() const { return kind_; }

  private:
    ErrorKind kind_;
};

[[noreturn]] inline void fail_input(const std::string& what) { throw Error(ErrorKind::bad_input, what); }
[[noreturn]] inline void fail_usage(const std::string& what) { throw Error(ErrorKind::usage, what); }

// A broken promise of our own code.
class InternalError : public std::logic_error {
  public:
    using std::logic_error::logic_error;
};

[[noreturn]] inline void assert_failed(const char* expression, const char* file, int line) {
    throw InternalError(std::string("internal error: ") + expression + " is false at " + file + ":" +
                        std::to_string(line));
}
#define MP_ASSERT(condition) \
    ((condition) ? static_cast<void>(0) : ::minipuzzle::assert_failed(#condition, __FILE__, __LINE__))

// An integer as To; throws InternalError where it does not fit.
template <class To, class From>
To narrow(From value) {
    MP_ASSERT(std::in_range<To>(value));
    return static_cast<To>(value);
}

// a / b for sizes that must divide.
inline int64_t div_exact(int64_t a, int64_t b) {
    MP_ASSERT(b > 0 && a % b == 0);
    return a / b;
}

inline int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace minipuzzle
