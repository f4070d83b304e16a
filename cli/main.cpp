// minipuzzle: the only place that catches. An error is one line on stderr and an exit code.
#include <cstdio>
#include <exception>
#include <new>
#include <string>

#include "cli/program.h"
#include "kernels/check.h"
#include "runtime/run_control.h"

namespace {

constexpr int kInterrupted = 130;

int failed(int code, const std::string& what) {
    std::fprintf(stderr, "minipuzzle: %s\n", what.c_str());
    return code;
}

}  // namespace

int main(int argc, char** argv) {
    using minipuzzle::ErrorKind;
    try {
        return minipuzzle::cli::run_program(argc, argv);
    } catch (const minipuzzle::Error& error) {
        return failed(static_cast<int>(error.kind()), error.what());
    } catch (const minipuzzle::Interrupted& interrupted) {
        return failed(kInterrupted, interrupted.what);
    } catch (const std::bad_alloc&) {
        return failed(static_cast<int>(ErrorKind::out_of_memory), "out of memory");
    } catch (const std::exception& error) {
        return failed(static_cast<int>(ErrorKind::other), error.what());
    }
}
