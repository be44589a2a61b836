// SPDX-License-Identifier: Apache-2.0
// Eight output channels of a ternary matrix, decoded: what patch embedding and linear operators share.
#ifndef TVIT_TERNARY_H
#define TVIT_TERNARY_H

#include "tvit/kernels.h"

#define TVIT_GROUP_CHANNELS 8u

typedef struct {
    int32_t (*pairs)[4]; // [k][4] in the scratch
    uint32_t count;      // channels, 1 ... 8
    int32_t start[8];    // of the sums of tvit_ternary_dot_portable: takes the offset of 128 off
    int32_t gain[8], bias[8];
    uint32_t shift[8];
} tvit_channel_group;

// Decode channels first ... first + 7, as many as there are.
void tvit_channel_group_decode(tvit_channel_group *group, const tvit_ternary_matrix *matrix, uint32_t first,
                               void *scratch);

// Bytes of scratch of one group.
static inline size_t tvit_channel_group_bytes(const tvit_ternary_matrix *matrix) {
    return sizeof(int32_t[4]) * matrix->k;
}

#endif
