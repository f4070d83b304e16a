// The test runner of every floor.
#define CATCH_CONFIG_MAIN
#include "tests/catch.h"
