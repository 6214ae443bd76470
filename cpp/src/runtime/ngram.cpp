#include "ngram.h"
