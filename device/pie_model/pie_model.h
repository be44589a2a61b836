/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exact model of the PIE vector extension (ee.* and mv.qr) of the ESP32-S3's Xtensa LX7.
 *
 * Freestanding C11: the same sources run inside a trap handler on an Xtensa core without PIE and inside a
 * host instruction-set simulator. Both machines must be little-endian. No heap, no globals, reentrant: all
 * state is in the structures the caller passes.
 *
 * Use: pie_decode() once for an instruction, pie_execute() any number of times. The PC is the caller's: add
 * insn.length to it after pie_execute() returned PIE_OK.
 *
 * The semantics are those of silicon as published (ESP32-S3 Technical Reference Manual 1.7, chapter 1, and
 * measurements on chips), not those of an emulator. Rules that hold for every instruction:
 *   - all operands are read before anything is written (ld/st fused forms use the old registers);
 *   - a vector address loses its low bits silently (128 bit: & ~15, 64 bit: & ~7, 32 bit: & ~3, 16 bit: & ~1),
 *     the post-increment applies to the unmasked register;
 *   - when the memory access fails nothing is changed.
 *
 * Implemented from text only, no measured or emulated result stands behind them:
 *   ee.fft.ams.s16.ld.incp, ee.fft.ams.s16.ld.incp.uaup, ee.fft.ams.s16.ld.r32.decp, ee.fft.ams.s16.st.incp,
 *   ee.fft.cmul.s16.st.xp, ee.wr_mask_gpio_out, ee.set_bit_gpio_out, ee.clr_bit_gpio_out, ee.get_gpio_in,
 *   rur.gpio_out, wur.gpio_out. pie_opcode_info_t.flags marks them PIE_UNVERIFIED.
 * Known only from an emulator or from disagreeing texts: the width of ee.bitrev (here FFT_BIT_WIDTH itself, ESP-DL
 *   has FFT_BIT_WIDTH + 3); ee.fft.cmul.s16.ld.xp as a whole, sel 6 and 7 (here: qz unchanged); vmulas...qup with
 *   qu = qs1 (here: qs1 is read before the load, as everywhere); SAR above 32 in ee.vmul, ee.vsl and ee.vsr (here
 *   as SAR = 32). Two destinations that are the same register: unspecified.
 */
#ifndef PIE_MODEL_H
#define PIE_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pie_opcodes.h" /* pie_opcode_t: dense ids 0 .. PIE_OPCODE_COUNT-1 */

#ifdef __cplusplus
extern "C" {
#endif

/* ---- decoding ---------------------------------------------------------------------------------------- */

/*
 * One decoded instruction. Register numbers sit in the member named after the operand in the manual's syntax;
 * only the members that occur in the opcode's syntax are meaningful, the others are 0. Names that the manual
 * varies are folded: qa, qa0 -> qz; qa1 -> qz1; qs -> qs0; qv -> qu; au -> at; fu*, fv* -> f.
 */
typedef struct pie_insn {
    uint16_t opcode; /* pie_opcode_t */
    uint8_t length;  /* bytes: 3 or 4 */
    uint8_t sel;     /* sel2, sel4, sel8, sel16, or the last immediate of srcmb and srs */
    uint8_t lane;    /* sel4 of movi.32, ldxq.32 and stxq.32: the 32-bit lane of the vector */
    uint8_t upd;     /* upd4 of ee.fft.cmul.s16.st.xp */
    uint8_t sar;     /* sar2, sar4: shift given in the instruction; byte count less one of slci and srci */
    uint8_t qz, qz1; /* vector results, 0..7 */
    uint8_t qx, qy, qm;
    uint8_t qu, qu1; /* vector loaded (qu) or stored (qv) */
    uint8_t qs0, qs1;
    uint8_t as, ad, at, ax, ay; /* address registers, 0..15 */
    uint8_t f[4];               /* FPU registers, f[i] = fu_i or fv_i */
    int32_t imm;                /* byte offset or gpio mask, already scaled and sign-extended */
} pie_insn_t;

/*
 * Decodes the PIE instruction at bytes (memory order). Reads bytes[3] only when bytes[0] says that the
 * instruction has four bytes (low nibble 14 or 15). False, and *insn untouched, when it is no PIE
 * instruction: also for every RUR/WUR of a user register that is not PIE's.
 */
bool pie_decode(const uint8_t *bytes, pie_insn_t *insn);

/*
 * Writes the text GNU objdump prints for the instruction, mnemonic and operands separated by one space, into
 * text[0..size-1], always terminated when size > 0. Returns the full length without the terminator.
 */
int pie_disassemble(const pie_insn_t *insn, char *text, size_t size);

/* ---- static facts, for timing models and tools -------------------------------------------------------- */

/* What an opcode does besides its memory access (an ee.vmulas...ld.ip is PIE_CLASS_MAC_* with load_bytes 16). */
typedef enum pie_class {
    PIE_CLASS_MEMORY,   /* nothing but a load or a store, whatever is loaded or stored */
    PIE_CLASS_MOVE,     /* between q, address, QACC registers; zeroing */
    PIE_CLASS_LOGIC,    /* and, or, xor, not */
    PIE_CLASS_ADD,      /* vadds, vsubs, vmax, vmin, vcmp */
    PIE_CLASS_MUL,      /* vmul, vrelu, vprelu, cmul */
    PIE_CLASS_MAC_ACCX, /* vmulas.*.accx */
    PIE_CLASS_MAC_QACC, /* vmulas.*.qacc, vsmulas */
    PIE_CLASS_REDUCE,   /* srcmb, srs: shift an accumulator and read it */
    PIE_CLASS_SHIFT,    /* vsl, vsr, src.q, slci, srci, slcxxp, srcxxp, srcq.128.st */
    PIE_CLASS_ZIP,      /* vzip, vunzip */
    PIE_CLASS_FFT,      /* fft.*, bitrev */
    PIE_CLASS_GPIO,     /* fast GPIO */
    PIE_CLASS_USER,     /* rur, wur */
} pie_class_t;

/* PIE state beside q0..q7, for state_use and state_def. */
enum {
    PIE_STATE_ACCX = 1u << 0,
    PIE_STATE_QACC_L = 1u << 1,
    PIE_STATE_QACC_H = 1u << 2,
    PIE_STATE_SAR = 1u << 3, /* the core's shift amount register */
    PIE_STATE_SAR_BYTE = 1u << 4,
    PIE_STATE_UA_STATE = 1u << 5,
    PIE_STATE_FFT_BIT_WIDTH = 1u << 6,
    PIE_STATE_GPIO_OUT = 1u << 7,
    PIE_STATE_GPIO_IN = 1u << 8,
};

/* pie_opcode_info_t.flags */
enum {
    PIE_UNVERIFIED = 1u << 0,   /* implemented from text only, see the top of this file */
    PIE_UNALIGNED_OK = 1u << 1, /* made for unaligned pointers: never reported as misaligned */
};

typedef struct pie_opcode_info {
    const char *mnemonic;
    const char *syntax; /* operands as in the manual: "qu, as, imm, qx, qy" */
    uint32_t match;     /* instruction word & mask == match; word = bytes in memory order, little endian */
    uint32_t mask;
    uint8_t length;      /* 3 or 4 */
    uint8_t class_id;    /* pie_class_t */
    uint8_t load_bytes;  /* bytes read from memory: 0, 1, 2, 4, 8 or 16 */
    uint8_t store_bytes; /* bytes written to memory: 0, 4, 8 or 16 */
    uint8_t flags;
} pie_opcode_info_t;

/* NULL when opcode >= PIE_OPCODE_COUNT. */
const pie_opcode_info_t *pie_opcode_info(unsigned opcode);

/*
 * Which registers one decoded instruction reads and writes, as bit masks, by pipeline stage: index 0 is
 * stage 1 (E), index 1 is stage 2 (M), as in table 1.7-2 of the Technical Reference Manual. An operand read
 * at stage s that an earlier instruction writes at stage d waits until that one was issued max(d - s + 1, 0)
 * cycles before. As in that table, a register of which an instruction keeps a part (ee.movi.32.q, ee.ldxq.32,
 * ee.vld.h.64, the unused half of ee.cmul) counts as written only.
 */
typedef struct pie_usage {
    uint8_t q_use[2], q_def[2];          /* bit n: qn */
    uint16_t a_use[2], a_def[2];         /* bit n: visible address register an */
    uint16_t f_use[2], f_def[2];         /* bit n: FPU register fn */
    uint16_t state_use[2], state_def[2]; /* PIE_STATE_* */
} pie_usage_t;

void pie_usage(const pie_insn_t *insn, pie_usage_t *usage);

/* ---- state ------------------------------------------------------------------------------------------- */

typedef union pie_q {
    uint8_t u8[16]; /* u8[0] is lane 0, bits 7:0, the byte ee.vst.128 writes first */
    int8_t s8[16];
    uint16_t u16[8];
    int16_t s16[8];
    uint32_t u32[4];
    int32_t s32[4];
    uint64_t u64[2];
} pie_q_t;

/*
 * The PIE registers of one core. Zero it (pie_reset) before use. q, accx, sar_byte, fft_bit_width, ua_state and
 * gpio_out may be read and written directly; QACC only through pie_qacc_read() and pie_qacc_write(): it is kept
 * unpacked in the lane width last used, so that a MAC need not unpack 20- or 40-bit fields.
 */
typedef struct pie_state {
    _Alignas(16) pie_q_t q[8];
    _Alignas(16) int32_t qacc20[16];      /* 20-bit lanes, sign-extended; valid if qacc_forms & 1 */
    _Alignas(16) int64_t qacc40[8];       /* 40-bit lanes, sign-extended; valid if qacc_forms & 2 */
    _Alignas(16) uint8_t qacc_raw[2][20]; /* [0] QACC_L, [1] QACC_H; valid if qacc_forms & 4 */
    _Alignas(8) int64_t accx;             /* 40 bits, sign-extended */
    _Alignas(16) pie_q_t ua_state;
    uint8_t qacc_forms;    /* which of the three hold the current value; at least one does */
    uint8_t sar_byte;      /* 4 bits */
    uint8_t fft_bit_width; /* 4 bits */
    uint8_t gpio_out;      /* 8 bits */
} pie_state_t;

/* All registers 0. */
void pie_reset(pie_state_t *state);

/* QACC as the chip holds it: low[0..19] = QACC_L, high[0..19] = QACC_H, little endian (rur.qacc_l_0 = low[0..3]). */
void pie_qacc_read(const pie_state_t *state, uint8_t low[20], uint8_t high[20]);
void pie_qacc_write(pie_state_t *state, const uint8_t low[20], const uint8_t high[20]);

/* Numbers of the user registers, as RUR and WUR encode them. */
enum {
    PIE_UR_ACCX_0 = 0,
    PIE_UR_ACCX_1 = 1,
    PIE_UR_QACC_H_0 = 2, /* .. QACC_H_4 = 6 */
    PIE_UR_QACC_L_0 = 7, /* .. QACC_L_4 = 11 */
    PIE_UR_GPIO_OUT = 12,
    PIE_UR_SAR_BYTE = 13,
    PIE_UR_FFT_BIT_WIDTH = 14,
    PIE_UR_UA_STATE_0 = 15, /* .. UA_STATE_3 = 18 */
    PIE_UR_COUNT = 19,
};

/* What RUR and WUR do; false when number >= PIE_UR_COUNT (then nothing is changed). */
bool pie_read_user_register(const pie_state_t *state, unsigned number, uint32_t *value);
bool pie_write_user_register(pie_state_t *state, unsigned number, uint32_t value);

/* ---- execution --------------------------------------------------------------------------------------- */

/*
 * How an instruction reaches memory. Addresses arrive masked; an access never crosses its own size.
 *
 * Compiled with PIE_DIRECT_MEMORY the model dereferences addresses as plain pointers (trap handler on the
 * target) and this structure is unused except for misaligned.
 *
 * Otherwise: when load_pages is set and load_pages[address >> page_shift] is not NULL, that is the host memory
 * of the whole page, and it is read directly; else load() is called. Stores likewise with store_pages. Pages are
 * at least 16 bytes. load() and store() return false, and have copied nothing, when nothing is mapped there; NULL
 * means nothing is mapped outside the pages.
 */
typedef struct pie_bus {
    uint8_t *const *load_pages;
    uint8_t *const *store_pages;
    uint32_t page_shift;
    bool (*load)(void *context, uint32_t address, void *data, uint32_t size);
    bool (*store)(void *context, uint32_t address, const void *data, uint32_t size);
    /* Called before an access whose unmasked address is no multiple of its size: on the chip silently another
     * address, so nearly always a bug. Not called for opcodes flagged PIE_UNALIGNED_OK. May be NULL. */
    void (*misaligned)(void *context, const pie_insn_t *insn, uint32_t address, uint32_t size);
    void *context;
} pie_bus_t;

/*
 * What an instruction sees of the core it runs on. ar[(ar_base + n) & ar_mask] is the visible register an:
 * {frame, 0, 15} for sixteen saved registers, {file, 4 * WINDOWBASE, 63} for a windowed register file.
 */
typedef struct pie_core {
    uint32_t *ar;
    uint32_t ar_base;
    uint32_t ar_mask;
    const uint32_t *sar;     /* the core's SAR, 6 bits used */
    uint32_t *fr;            /* 16 FPU registers as bit patterns; may be NULL if no ee.ldf/ee.stf is executed */
    uint8_t gpio_in;         /* what ee.get_gpio_in reads */
    uint32_t access_address; /* out: masked address of the latest memory access, for timing models */
    pie_bus_t bus;
} pie_core_t;

typedef enum pie_status {
    PIE_OK = 0,
    PIE_LOAD_ERROR = 1,  /* nothing mapped at core->access_address; state unchanged */
    PIE_STORE_ERROR = 2, /* likewise, or read-only */
} pie_status_t;

/* Executes one decoded instruction. */
pie_status_t pie_execute(const pie_insn_t *insn, pie_state_t *state, pie_core_t *core);

/* The function behind an opcode, for simulators that predecode: calling it is pie_execute without the look-up. */
typedef pie_status_t (*pie_execute_fn)(const pie_insn_t *insn, pie_state_t *state, pie_core_t *core);
extern const pie_execute_fn pie_execute_table[PIE_OPCODE_COUNT];

#ifdef __cplusplus
}
#endif

#endif
