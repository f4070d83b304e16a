// Signals as a question that long computations ask between steps.
#pragma once

namespace minipuzzle::cli {

// SIGINT, SIGTERM and SIGUSR1 from now on ask the program to save its state and stop; a second SIGINT kills.
void install_signal_handlers();
// True once one of them arrived.
bool stop_requested();

}  // namespace minipuzzle::cli
