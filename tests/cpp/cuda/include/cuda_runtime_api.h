// In place of the CUDA toolkit's header: see emulator.h.
#include "../emulator.h"
