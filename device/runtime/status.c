// SPDX-License-Identifier: Apache-2.0
#include "internal.h"

const char *tvit_status_text(tvit_status status) {
    static const char *const texts[] = {
        [TVIT_OK] = "ok",
        [TVIT_BAD_MAGIC] = "not a .tvit file",
        [TVIT_BAD_VERSION] = "a version of the format that this build does not read",
        [TVIT_BAD_SIZE] = "shorter or longer than the file says",
        [TVIT_BAD_CRC] = "a checksum does not match",
        [TVIT_BAD_SECTION] = "a malformed section table or section",
        [TVIT_BAD_NAME] = "a name outside NAME",
        [TVIT_BAD_MODEL] = "a malformed model record",
        [TVIT_BAD_TENSOR] = "a malformed tensor record",
        [TVIT_BAD_OPERATOR] = "an operator that does not fit its tensors",
        [TVIT_BAD_PARAMETER] = "an operator's constant out of range, or its data malformed",
        [TVIT_BAD_CHANNEL] = "a channel whose accumulator could overflow",
        [TVIT_BAD_PLAN] = "a memory plan that does not hold for this build",
        [TVIT_ARENA_TOO_SMALL] = "the arena is smaller than the model's plan",
        [TVIT_MISALIGNED] = "the file or the arena is not 16-byte aligned",
        [TVIT_BAD_ARGUMENT] = "an argument out of range",
        [TVIT_STOPPED] = "stopped by the observer",
    };
    uint32_t index = (uint32_t)status;
    return index < sizeof texts / sizeof texts[0] ? texts[index] : "unknown status";
}

tvit_status tvit_refuse(tvit_error *error, tvit_status status, const char *section, uint32_t index,
                        const char *reason) {
    if (!error) return status;
    error->status = status;
    for (uint32_t i = 0; i < sizeof error->section; i++)
        error->section[i] = 0;
    for (uint32_t i = 0; i < 4 && section[i]; i++)
        error->section[i] = section[i];
    error->index = index;
    error->reason = reason;
    return status;
}
