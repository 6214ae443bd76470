// Exceptions inside, numbers outside: every extern "C" body runs in guarded().
#pragma once

#include <new>
#include <string>

#include "core/notation.h"

namespace kad {

// Keeps the message for kad_last_error() and hands back the status.
kad_status fail(kad_status status, const std::string & message) noexcept;

template <typename Body>
kad_status guarded(Body body) noexcept {
    try {
        body();
        return KAD_OK;
    } catch (const Error & e) {
        return fail(e.status, e.what());
    } catch (const std::bad_alloc &) {
        return fail(KAD_OUT_OF_MEMORY, "out of memory");
    } catch (const std::exception & e) {
        return fail(KAD_INTERNAL_ERROR, e.what());
    } catch (...) {
        return fail(KAD_INTERNAL_ERROR, "an exception of unknown type");
    }
}

// Throws KAD_INVALID_ARGUMENT unless `pointer` is something.
inline void need(const void * pointer, const char * name) {
    if (!pointer) throw Error(KAD_INVALID_ARGUMENT, std::string(name) + " is NULL; expected a pointer");
}

} // namespace kad
