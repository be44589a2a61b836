/* SPDX-License-Identifier: Apache-2.0 */
/* Queries and keys as the scores want them (attention_work.h). */
#include "assembler.h"
#include "attention_work.h"
#include "transpose.h"

    .text
    .begin no-transform

/* Eight rows of 16 keys at a2 to eight bytes of each of 16 rows from a5 on, a4 bytes apart: 36 slots. */
.macro transpose8
    ee.vld.128.ip q0, a2, 16
    ee.vld.128.ip q1, a2, 16
    ee.vld.128.ip q2, a2, 16
    ee.vld.128.ip q3, a2, 16
    ee.vld.128.ip q4, a2, 16
    ee.vld.128.ip q5, a2, 16
    ee.vld.128.ip q6, a2, 16
    ee.vld.128.ip q7, a2, 16
    zip_rows_to_columns
    .irp q, q0, q4, q2, q6, q1, q5, q3, q7
    ee.vst.l.64.xp \q, a5, a4
    ee.vst.h.64.xp \q, a5, a4
    .endr
.endm

    /* a2 block, a3 keys, a4 dims */
    kernel_function tvit_attention_transpose_pie
    kernel_enter
    srli a6, a4, 3
.Ltile:
    mov a5, a3
    transpose8
    addi a3, a3, 8
    addi a6, a6, -1
    bnez a6, .Ltile
    kernel_return

    /* a2 values, a3 to, a4 vectors */
    kernel_function tvit_attention_fill_pie
    kernel_enter
    loop a4, .Lfilled
    ee.vldbc.16.ip q0, a2, 2
    nop
    ee.vst.128.ip q0, a3, 16
.Lfilled:
    kernel_return

    /* a2 from, a3 to, a4 vectors */
    kernel_function tvit_attention_copy_pie
    kernel_enter
    srli a5, a4, 1
    loopnez a5, .Lcopied
    ee.vld.128.ip q0, a2, 16
    ee.vld.128.ip q1, a2, 16
    ee.vst.128.ip q0, a3, 16
    ee.vst.128.ip q1, a3, 16
.Lcopied:
    bbci a4, 0, .Lcopy_end
    ee.vld.128.ip q0, a2, 16
    ee.vst.128.ip q0, a3, 16
.Lcopy_end:
    kernel_return

/*
 * a2 work, a3 block: the queries to memory, the sums of their squares. Narrow: a query in each odd lane, 0 in the even
 * ones.
 */
.macro load_queries name, narrow
    kernel_function \name
    kernel_enter
    addmi a4, a2, 512
    addi a4, a4, WORK_PADDING - 512
    ee.vld.128.ip q7, a4, 16 /* a4: WORK_BOUND */
    ee.ld.qacc_l.l.128.ip a4, 16
    ee.ld.qacc_h.l.128.ip a4, 16
    ee.ld.qacc_l.h.32.ip a4, 4
    ee.ld.qacc_h.h.32.ip a4, 0
    l32i a5, a2, WORK_QUERIES
    mov a8, a5
    l32i a6, a2, WORK_HEAD_DIM
    ee.zero.q q2
    .if \narrow
    loop a6, .Lqueries\@
    ee.vld.128.ip q0, a3, 16
    ee.zero.q q1
    ee.vzip.8 q1, q0
    ee.vmulas.s8.qacc q1, q1
    ee.vst.128.ip q1, a5, 16
.Lqueries\@:
    .else
    srli a7, a6, 1
    addi a7, a7, -1
    bltz a7, .Lodd\@
    ee.vld.128.ip q0, a3, 16
    ee.vld.128.ip q1, a3, 16
    loopnez a7, .Lpairs\@
    ee.vst.128.ip q0, a5, 16
    ee.vmulas.s8.qacc.ld.ip q0, a3, 16, q0, q0
    ee.vst.128.ip q1, a5, 16
    ee.vmulas.s8.qacc.ld.ip q1, a3, 16, q1, q1
.Lpairs\@:
    ee.vst.128.ip q0, a5, 16
    ee.vmulas.s8.qacc q0, q0
    ee.vst.128.ip q1, a5, 16
    ee.vmulas.s8.qacc q1, q1
    bbci a6, 0, .Leven\@
.Lodd\@:
    ee.vld.128.ip q0, a3, 16
    nop
    ee.vmulas.s8.qacc q0, q0
    ee.vst.128.ip q0, a5, 16
.Leven\@:
    .endif
    l32i a7, a2, WORK_PADDED_DIM
    sub a7, a7, a6
    loopnez a7, .Lzeros\@
    ee.vst.128.ip q2, a5, 16
.Lzeros\@:
    ee.vld.128.ip q0, a8, 16
    ee.vld.128.ip q1, a8, 16
    movi a6, 0
    ee.vst.128.ip q0, a5, 16
    ee.vst.128.ip q1, a5, 16
    /* Lanes with a negative sum are within the bound. */
    ee.srcmb.s8.qacc q0, a6, 0
    ee.vcmp.lt.s8 q0, q0, q2
    ee.orq q0, q0, q7
    ee.notq q0, q0
    ee.movi.32.a q0, a2, 0
    ee.movi.32.a q0, a3, 1
    ee.movi.32.a q0, a4, 2
    ee.movi.32.a q0, a5, 3
    or a2, a2, a3
    or a4, a4, a5
    or a2, a2, a4
    kernel_return
.endm

    load_queries tvit_attention_load_queries_pie, 0
    load_queries tvit_attention_load_narrow_queries_pie, 1

    .end no-transform
