/* SPDX-License-Identifier: Apache-2.0 */
/* Memory of one core for the PIE kernels: static, outside the arena, because generated code lies in it. */
#ifndef TVIT_PIE_WORKSPACE_H
#define TVIT_PIE_WORKSPACE_H

/* Where memory written at an address is executed, as a distance. The ESP32-S3 shows SRAM 1 twice: 0x6f0000. */
#ifndef TVIT_EXECUTABLE_OFFSET
#define TVIT_EXECUTABLE_OFFSET 0
#endif

#ifndef __ASSEMBLER__

#include "tvit/kernels.h"

#define TVIT_STREAM_MAX_K 1600u // longest row of trits that becomes a stream; of gaps it is the instructions that count
#define TVIT_STREAM_MAX_EXTRA 63u   // instructions that a row may have more than trits
#define TVIT_STREAM_HEAD_BYTES 144u // in front of the first generated instruction
#define TVIT_STREAM_INSTRUCTIONS (TVIT_STREAM_MAX_K + TVIT_STREAM_MAX_EXTRA + 1u)
#define TVIT_STREAM_OVERRUN_BYTES 128u // the generator writes whole groups of 32 instructions

#define TVIT_TRIT_CODES_DECODED 0x100u

// What an epilogue needs of one channel. `bias` is the bias in eight lanes of 20 bits.
typedef struct {
    uint32_t bias[5];
    uint32_t header; // of its instruction stream (tvit/format.h)
    int8_t gain, minus_gain;
    uint8_t shift, unused[5];
} tvit_pie_record;

typedef struct {
    // Instructions of one row at a time, or int8 weights of some rows (lanes.S).
    uint8_t stream[TVIT_STREAM_HEAD_BYTES + 4 * TVIT_STREAM_INSTRUCTIONS + TVIT_STREAM_OVERRUN_BYTES];
    tvit_pie_record records[TVIT_TILE_CHANNELS];
    uint32_t qacc[12];                                   // QACC as it is stored, 40 bytes of it
    int16_t rows[TVIT_TILE_CHANNELS][TVIT_BLOCK_TOKENS]; // outputs of a tile that are not stored as token blocks
    uint32_t table[256];                                 // an int8 table with its clamp, a word an entry
    uint32_t trit_codes[256][2];                         // codes of the trits of a byte (stream_trits.S) of the codec
    uint32_t trit_codes_of; // codec + 1; TVIT_TRIT_CODES_DECODED + codec: int8 trits instead (lanes.c)
} __attribute__((aligned(16))) tvit_pie_workspace;

extern tvit_pie_workspace tvit_pie_workspaces[TVIT_MAX_CORES];

#endif

#endif
