// The program: from argv to an exit code. Everything but main()'s catching.
#pragma once

namespace minipuzzle::cli {

// Parses, runs, prints. Returns 0, or CLI11's codes for --help and --version; throws Error, Interrupted, ...
int run_program(int argc, char** argv);

}  // namespace minipuzzle::cli
