#include "cli/signals.h"

#include <csignal>

namespace minipuzzle::cli {
namespace {

// A signal handler may touch nothing else.
volatile std::sig_atomic_t stop_flag = 0;

void request_stop(int) { stop_flag = 1; }

}  // namespace

void install_signal_handlers() {
    struct sigaction action = {};
    action.sa_handler = request_stop;
    sigemptyset(&action.sa_mask);
    action.sa_flags = SA_RESTART;
    sigaction(SIGTERM, &action, nullptr);
    sigaction(SIGUSR1, &action, nullptr);
    action.sa_flags = SA_RESTART | SA_RESETHAND;  // the second one finds the default action: death
    sigaction(SIGINT, &action, nullptr);
    std::signal(SIGXFSZ, SIG_IGN);  // a file at its size limit is then a failed write, told like a full disk
}

bool stop_requested() { return stop_flag != 0; }

}  // namespace minipuzzle::cli
