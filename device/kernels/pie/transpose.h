/* SPDX-License-Identifier: Apache-2.0 */
/* The middle of a transpose of bytes, for the assembly sources of this folder. */
#ifndef TVIT_PIE_TRANSPOSE_H
#define TVIT_PIE_TRANSPOSE_H

/* clang-format off */
/*
 * Eight rows of 16 bytes in q0 ... q7 to sixteen columns of 8: three rounds of zips, of bytes, pairs, and fours. 12 slots.
 * Columns 0 and 1 are the halves of q0, the next ones those of q4, q2, q6, q1, q5, q3, q7.
 */
.macro zip_rows_to_columns
    ee.vzip.8 q0, q1
    ee.vzip.8 q2, q3
    ee.vzip.8 q4, q5
    ee.vzip.8 q6, q7
    ee.vzip.16 q0, q2
    ee.vzip.16 q1, q3
    ee.vzip.16 q4, q6
    ee.vzip.16 q5, q7
    ee.vzip.32 q0, q4
    ee.vzip.32 q2, q6
    ee.vzip.32 q1, q5
    ee.vzip.32 q3, q7
.endm
/* clang-format on */

#endif
