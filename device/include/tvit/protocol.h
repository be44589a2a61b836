// SPDX-License-Identifier: Apache-2.0
// Constants and layouts of the link; PROTOCOL.md describes them, host/tvhil/link/messages.py mirrors them.
// Everything on the wire is little-endian and unpadded. Offsets in comments count from the start of the payload.
#ifndef TVIT_PROTOCOL_H
#define TVIT_PROTOCOL_H

#include <stdint.h>

#define TVIT_LINK_VERSION 2u
#define TVIT_LINK_MAGIC 0x4b4c5654u   // "TVLK"
#define TVIT_LINK_HEADER_BYTES 4u     // type u8, session u8, sequence u16
#define TVIT_LINK_CRC_BYTES 4u        // CRC-32 of header and payload
#define TVIT_LINK_NUMBER_MASK 0xfff0u // of a sequence: the request's number; the other bits count its attempts
#define TVIT_LINK_MIN_PAYLOAD 256u
#define TVIT_LINK_LIMIT_PAYLOAD 4096u

// Largest payload of this build, multiple of 4. INFO and MODEL_INFO need 256.
#ifndef TVIT_LINK_MAX_PAYLOAD
#define TVIT_LINK_MAX_PAYLOAD 1032u // a WRITE of 1,024 bytes
#endif

// Bytes of a packet (header, payload, CRC) of n payload bytes, and of its frame on the line at most:
// COBS adds one byte and one more for each 254, and there is a zero on each side.
#define TVIT_LINK_PACKET_BYTES(n) (TVIT_LINK_HEADER_BYTES + (n) + TVIT_LINK_CRC_BYTES)
#define TVIT_LINK_FRAME_BYTES(n) (TVIT_LINK_PACKET_BYTES(n) + TVIT_LINK_PACKET_BYTES(n) / 254u + 3u)

// Requests of the host. The answer has the same session and sequence, and TVIT_LINK_ANSWER added to the type.
typedef enum {
    TVIT_LINK_HELLO = 1,
    TVIT_LINK_INFO = 2,
    TVIT_LINK_MODEL_INFO = 3,
    TVIT_LINK_MEMORY = 4,
    TVIT_LINK_WRITE = 5,
    TVIT_LINK_READ = 6,
    TVIT_LINK_CHECKSUM = 7,
    TVIT_LINK_RUN = 8,
    TVIT_LINK_ECHO = 9,
    TVIT_LINK_MODEL_LOAD = 10,
    TVIT_LINK_RESET = 11,
    TVIT_LINK_TEST_FAULT = 12,
    TVIT_LINK_SET_BAUD = 13,
} tvit_link_request;

#define TVIT_LINK_ANSWER 0x80u

// Sent by the device without being asked, except ERROR and PROGRESS, which carry the sequence of their request.
typedef enum {
    TVIT_LINK_ERROR = 0x40,
    TVIT_LINK_NAK = 0x41,
    TVIT_LINK_PROGRESS = 0x42,
    TVIT_LINK_FAULT = 0x43,
    TVIT_LINK_BOOT = 0x44,
    TVIT_LINK_LOG = 0x45,
} tvit_link_event;

// Codes of ERROR. A refusal of the runtime is TVIT_LINK_E_RUNTIME + tvit_status. Append only.
typedef enum {
    TVIT_LINK_E_VERSION = 1,       // the other side speaks another protocol version
    TVIT_LINK_E_SESSION = 2,       // no HELLO since the board started, or another host took over
    TVIT_LINK_E_TYPE = 3,          // unknown request
    TVIT_LINK_E_LENGTH = 4,        // payload too short or too long for its type
    TVIT_LINK_E_ARGUMENT = 5,      // unknown region, flag or kind
    TVIT_LINK_E_RANGE = 6,         // offset, length or id outside the region
    TVIT_LINK_E_NO_MODEL = 7,      // there is no usable model
    TVIT_LINK_E_NOT_SUPPORTED = 8, // this port does not offer it
    TVIT_LINK_E_IMAGE_CRC = 9,     // the image in the arena is not the one RUN asks for
    TVIT_LINK_E_BUSY = 10,         // a run is under way
    TVIT_LINK_E_STALE = 11,        // a write older than the last run
    TVIT_LINK_E_RUNTIME = 256,
} tvit_link_error;

typedef enum {
    TVIT_LINK_CAP_MODEL_RAM = 1,  // a model may be uploaded to RAM
    TVIT_LINK_CAP_RESET = 2,      // RESET restarts the board
    TVIT_LINK_CAP_TRACE = 4,      // RUN can record operators
    TVIT_LINK_CAP_TEST_FAULT = 8, // TEST_FAULT is armed
    TVIT_LINK_CAP_BAUD = 16,      // SET_BAUD works: the line is a UART
} tvit_link_capability;

// What READ, WRITE and CHECKSUM address.
typedef enum {
    TVIT_LINK_REGION_TENSOR = 0,      // values of tensor `id` as rows; WRITE only for tensor 0, the image
    TVIT_LINK_REGION_MULTIPLIERS = 1, // per-token multipliers of tensor `id`, u16 a row
    TVIT_LINK_REGION_TRACE = 2,       // tvit_link_trace records of the last run; id 0
    TVIT_LINK_REGION_MODEL = 3,       // the model file in use, read only; id 0
    TVIT_LINK_REGION_MODEL_RAM = 4,   // RAM for an uploaded model; id 0
} tvit_link_region;

typedef enum {
    TVIT_LINK_RUN_TRACE_COUNTERS = 1,
    TVIT_LINK_RUN_TRACE_CRC = 2,
} tvit_link_run_flag;

typedef enum {
    TVIT_LINK_MODEL_FLASH = 0, // the port's own model
    TVIT_LINK_MODEL_RAM = 1,   // the uploaded one
} tvit_link_model_source;

typedef enum {
    TVIT_LINK_COUNTER_CYCLES = 0,
    TVIT_LINK_COUNTER_INSTRUCTIONS = 1,
    TVIT_LINK_COUNTER_NANOSECONDS = 2,
} tvit_link_counter_unit;

typedef enum {
    TVIT_LINK_TEST_INVALID_LOAD = 1, // read from an address that is not mapped
    TVIT_LINK_TEST_HANG = 2,         // stop answering
} tvit_link_test;

#define TVIT_LINK_MEMORY_REPAINT 1u     // MEMORY: afterwards forget the high-water marks (and every tensor)
#define TVIT_LINK_RESET_KEY 0x52455345u // keeps a random frame from resetting the board
#define TVIT_LINK_ALL 0xffffffffu       // RUN: all operators
#define TVIT_LINK_BAUD_TRIAL 512u       // SET_BAUD: bytes received until a rate that was not confirmed is given up

// Sizes of the fixed payloads (PROTOCOL.md has the fields).
#define TVIT_LINK_HELLO_BYTES 12u
#define TVIT_LINK_HELLO_ANSWER_BYTES 28u
#define TVIT_LINK_INFO_BYTES 40u // then memories and strings
#define TVIT_LINK_MODEL_INFO_BYTES 188u
#define TVIT_LINK_MEMORY_BYTES 56u
#define TVIT_LINK_WRITE_BYTES 8u // then data
#define TVIT_LINK_READ_BYTES 12u // of CHECKSUM too
#define TVIT_LINK_CHECKSUM_ANSWER_BYTES 12u
#define TVIT_LINK_RUN_BYTES 16u
#define TVIT_LINK_RUN_ANSWER_BYTES 24u
#define TVIT_LINK_TRACE_BYTES 16u
#define TVIT_LINK_ERROR_BYTES 12u // then text
#define TVIT_LINK_PROGRESS_BYTES 8u
#define TVIT_LINK_FAULT_BYTES 32u // then text
#define TVIT_LINK_BOOT_BYTES 4u   // then text

#endif
