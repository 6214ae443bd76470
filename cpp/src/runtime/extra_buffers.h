// Can llama.cpp's extra buffer types (weights repacked for special instructions) be used here?
#pragma once

namespace kad {

// False where llama.cpp was built for AMX and its AMX code fails: GCC leaves the tile configuration out of it, and the first
// pass ends the process (ggml-org/llama.cpp#26954). Tried once, in a child process that multiplies two small matrices.
// Always true elsewhere.
bool extra_buffers_work();

// Runs it in a child process: true when it returned true in time. A signal, an exit and a hang are false.
bool survives(bool (*what)(), int seconds = 10);

} // namespace kad
