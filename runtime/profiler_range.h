// ProfilerRange: a named span on the profiler's time line, as long as it lives.
#pragma once

#include "kernels/backend.h"

namespace minipuzzle {

class ProfilerRange {
  public:
    ProfilerRange(Backend& backend, const char* name) : backend_(backend) { backend.begin_range(name); }
    ~ProfilerRange() { backend_.end_range(); }
    ProfilerRange(const ProfilerRange&) = delete;
    ProfilerRange& operator=(const ProfilerRange&) = delete;

  private:
    Backend& backend_;
};

}  // namespace minipuzzle
