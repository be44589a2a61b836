// SPDX-License-Identifier: Apache-2.0
#include "ternary.h"

void tvit_channel_group_decode(tvit_channel_group *group, const tvit_ternary_matrix *matrix, uint32_t first,
                               void *scratch) {
    uint32_t left = matrix->n - first;
    int32_t sums[TVIT_GROUP_CHANNELS];
    group->pairs = scratch;
    group->count = left < TVIT_GROUP_CHANNELS ? left : TVIT_GROUP_CHANNELS;
    tvit_trits_decode_portable(matrix, first, group->count, group->pairs, sums);
    for (uint32_t c = 0; c < TVIT_GROUP_CHANNELS; c++) {
        uint32_t record = c < group->count ? matrix->channels[first + c] : 0;
        group->start[c] = -128 * sums[c];
        group->gain[c] = TVIT_CHANNEL_GAIN(record);
        group->bias[c] = TVIT_CHANNEL_BIAS(record);
        group->shift[c] = TVIT_CHANNEL_SHIFT(record);
    }
}
