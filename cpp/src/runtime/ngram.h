#pragma once
#include "../core/notation.h"
namespace kad {
class NGramTable {};
} // namespace kad
