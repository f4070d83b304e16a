// What a call that must fail says.
#pragma once

#include <string>

#include "kernels/check.h"
#include "tests/catch.h"

namespace minipuzzle::test {

// The one-line message of the Error that `call` throws; fails the test case where it throws nothing, another
// kind, or a message of several lines.
template <class Call>
std::string error_of(ErrorKind kind, Call call) {
    try {
        call();
    } catch (const Error& error) {
        const std::string what = error.what();
        INFO(what);
        CHECK(error.kind() == kind);
        CHECK(what.find('\n') == std::string::npos);
        return what;
    }
    FAIL("expected an Error, but nothing was thrown");
    return "";
}

template <class Call>
std::string bad_input(Call call) {
    return error_of(ErrorKind::bad_input, call);
}

}  // namespace minipuzzle::test
