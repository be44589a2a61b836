// SPDX-License-Identifier: Apache-2.0
// The native board: a Linux process that serves the link over a pty, a TCP connection or an inherited socket.
#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <ucontext.h>
#include <unistd.h>

enum { EXIT_USAGE = 2, EXIT_BAD_INPUT = 3, EXIT_BOARD = 5, PAGE = 4096, MOST_ARGUMENTS = 64 };

static const char help[] =
    "usage: tvit-native (--pty | --tcp PORT | --fd N) [--model FILE] [options]\n"
    "  --pty               serve on a new pty and print its path\n"
    "  --tcp PORT          serve on 127.0.0.1:PORT (0: any free port) and print it\n"
    "  --fd N              serve on the inherited stream N and end with it\n"
    "  --model FILE        the model, mapped into memory as if it were flash\n"
    "  --arena BYTES       working memory (default 16777216)\n"
    "  --external-arena BYTES  for models that do not fit it (default 0)\n"
    "  --model-ram BYTES   memory for an uploaded model (default 0: none)\n"
    "  --stack BYTES       stack of the server (default 262144)\n"
    "  --counter time|instructions   nanoseconds (default), or user instructions where perf offers them\n"
    "  --window BYTES      how much the host may send ahead (default 16384)\n"
    "  --test-faults       let the host provoke a fault or a hang\n"
    "  --die-with-parent   end when the process that started this one ends\n";

static tvit_server server;
static tvit_port port;
static native_line line;
static native_counter counter;
static tvit_link_trace trace[TVIT_MAX_OPERATORS];
static char details[160];
static tvit_port_memory memories[2];
static char **arguments;

extern char __data_start, _end, __executable_start, __etext;

static _Noreturn void stop(int code, const char *what, const char *which) {
    fprintf(stderr, "tvit-native: %s%s%s\n", what, which ? ": " : "", which ? which : "");
    exit(code);
}

static size_t read_line(void *user, uint8_t *bytes, size_t capacity) {
    return native_line_read(user, bytes, capacity);
}
static void write_line(void *user, const uint8_t *bytes, size_t count) {
    native_line_write(user, bytes, count);
}
static void wait_line(void *user) {
    native_line_wait(user);
}
static void set_baud(void *user, uint32_t baud) {
    (void)user;
    (void)baud; // a pty carries everything at once, at any rate
}
static uint64_t read_counter(void *user) {
    (void)user;
    return native_counter_read(&counter);
}

// Start again from nothing in this process, with the same line: what a reset is to a board.
static void reset_board(void *user) {
    (void)user;
    static char line_number[16], listener_number[16];
    char *again[MOST_ARGUMENTS + 8];
    int count = 0;
    for (char **a = arguments; *a && count < MOST_ARGUMENTS; a++)
        again[count++] = *a;
    snprintf(line_number, sizeof line_number, "%d", line.fd);
    snprintf(listener_number, sizeof listener_number, "%d", line.listener);
    again[count++] = "--resume-line";
    again[count++] = line_number;
    again[count++] = "--resume-listener";
    again[count++] = listener_number;
    again[count] = NULL;
    execv("/proc/self/exe", again);
    _exit(EXIT_BOARD);
}

static void report_signal(int number, siginfo_t *info, void *context) {
    const char *text = "fault";
    switch (number) {
    case SIGSEGV:
        text = "SIGSEGV: access to memory that is not mapped";
        break;
    case SIGBUS:
        text = "SIGBUS: the model file was truncated, or a misaligned access";
        break;
    case SIGILL:
        text = "SIGILL: illegal instruction";
        break;
    case SIGFPE:
        text = "SIGFPE: division by zero";
        break;
    case SIGABRT:
        text = "SIGABRT: failed check";
        break;
    default:
        break;
    }
    tvit_fault fault = {.cause = (uint32_t)number, .address = (uint64_t)(uintptr_t)info->si_addr, .text = text};
    const ucontext_t *machine = context;
#if defined(__x86_64__)
    fault.pc = (uint64_t)machine->uc_mcontext.gregs[REG_RIP];
#elif defined(__aarch64__)
    fault.pc = machine->uc_mcontext.pc;
#else
    (void)machine;
#endif
    line.after_fault = 1;
    tvit_server_fault(&server, &fault);
}

static void catch_faults(void) {
    static uint8_t stack[64 * 1024];
    const stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    sigaltstack(&alternate, NULL);
    struct sigaction action = {.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    action.sa_sigaction = report_signal;
    sigemptyset(&action.sa_mask);
    static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT};
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++)
        sigaction(signals[i], &action, NULL);
}

static void *serve(void *unused) {
    (void)unused;
    catch_faults();
    if (native_counter_open(&counter)) stop(EXIT_BOARD, "the machine offers no count of instructions", strerror(errno));
    tvit_server_run(&server, &port);
}

static void *map_memory(size_t bytes) {
    if (bytes == 0) return NULL;
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) stop(EXIT_USAGE, "cannot get so much memory", strerror(errno));
    return memory;
}

static void map_model(const char *path) {
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (fd < 0 || fstat(fd, &status)) stop(EXIT_BAD_INPUT, path, strerror(errno));
    if (!S_ISREG(status.st_mode)) stop(EXIT_BAD_INPUT, path, "not a file");
    if (status.st_size > (off_t)UINT32_MAX) stop(EXIT_BAD_INPUT, path, "larger than any model can be (4 GB)");
    static uint8_t nothing[TVIT_ALIGN] __attribute__((aligned(16)));
    port.model = nothing;
    port.model_bytes = (uint32_t)status.st_size;
    port.model_exact = 1;
    if (status.st_size == 0) return;
    void *file = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (file == MAP_FAILED) stop(EXIT_BAD_INPUT, path, strerror(errno));
    port.model = file;
    close(fd);
}

static uint32_t number(const char *option, const char *text) {
    char *end = NULL;
    errno = 0;
    const unsigned long value = text ? strtoul(text, &end, 0) : 0;
    if (!text || *text == '-' || end == text || *end || errno || value > 0x7fffffffu)
        stop(EXIT_USAGE, "not a number of bytes, a port or a descriptor", option);
    return (uint32_t)value;
}

int main(int argc, char **argv) {
    uint32_t arena_bytes = 16u << 20, external_bytes = 0, stack_bytes = 256u << 10, model_ram_bytes = 0, tcp_port = 0;
    const char *model = NULL;
    enum { NO_LINE, PTY, TCP, FD } kind = NO_LINE;
    port.window_bytes = 16384;
    arguments = argv;
    line = (native_line){.fd = -1, .listener = -1};
    int resumed = 0;
    if (argc > MOST_ARGUMENTS) stop(EXIT_USAGE, "too many arguments", NULL);
    for (int i = 1; i < argc; i++) {
        const char *option = argv[i], *value = argv[i + 1];
        int takes_value = 1;
        if (!strcmp(option, "--model")) {
            if (!value) stop(EXIT_USAGE, "which model?", option);
            model = value;
        } else if (!strcmp(option, "--tcp")) {
            kind = TCP;
            tcp_port = number(option, value);
            if (tcp_port > 65535) stop(EXIT_USAGE, "not a port", value);
        } else if (!strcmp(option, "--fd")) {
            kind = FD;
            line.fd = (int)number(option, value);
        } else if (!strcmp(option, "--arena")) {
            arena_bytes = number(option, value);
        } else if (!strcmp(option, "--external-arena")) {
            external_bytes = number(option, value);
        } else if (!strcmp(option, "--model-ram")) {
            model_ram_bytes = number(option, value);
        } else if (!strcmp(option, "--stack")) {
            stack_bytes = number(option, value);
        } else if (!strcmp(option, "--window")) {
            port.window_bytes = number(option, value);
        } else if (!strcmp(option, "--counter")) {
            if (!value || (strcmp(value, "time") && strcmp(value, "instructions")))
                stop(EXIT_USAGE, "time or instructions?", option);
            counter.instructions = value[0] == 'i';
        } else if (!strcmp(option, "--resume-line")) { // given by reset_board only
            line.fd = value ? atoi(value) : -1;
            resumed = 1;
        } else if (!strcmp(option, "--resume-listener")) {
            line.listener = value ? atoi(value) : -1;
        } else {
            takes_value = 0;
            if (!strcmp(option, "--pty"))
                kind = PTY;
            else if (!strcmp(option, "--test-faults"))
                port.test_faults = 1;
            else if (!strcmp(option, "--die-with-parent"))
                prctl(PR_SET_PDEATHSIG, SIGKILL);
            else if (!strcmp(option, "--help")) {
                fputs(help, stdout);
                return 0;
            } else
                stop(EXIT_USAGE, "unknown option (--help tells them)", option);
        }
        i += takes_value;
    }
    if (kind == NO_LINE) stop(EXIT_USAGE, "one of --pty, --tcp PORT and --fd N is needed (--help tells more)", NULL);
    if (stack_bytes < 65536) stop(EXIT_USAGE, "the stack needs 65536 bytes", NULL);

    signal(SIGPIPE, SIG_IGN);
    port.name = "native";
    port.board = "native";
    port.boot_reason = resumed ? "reset" : "power-on";
    port.user = &line;
    port.read = read_line;
    port.write = write_line;
    port.idle = wait_line;
    port.counter = read_counter;
    port.reset = reset_board;
    if (kind == PTY) {
        port.set_baud = set_baud;
        port.baud = 115200;
        port.most_baud = 4000000;
    }
    port.counter_unit = counter.instructions ? TVIT_LINK_COUNTER_INSTRUCTIONS : TVIT_LINK_COUNTER_NANOSECONDS;
    port.counter_multiplier = port.counter_divisor = 1;
    if (model) map_model(model);
    port.arena_bytes = (arena_bytes + 15u) & ~15u;
    port.arena = map_memory(port.arena_bytes);
    port.external_arena_bytes = (external_bytes + 15u) & ~15u;
    port.external_arena = map_memory(port.external_arena_bytes);
    port.model_ram_bytes = model_ram_bytes;
    port.model_ram = map_memory(model_ram_bytes);
    port.trace = trace;
    port.trace_capacity = TVIT_MAX_OPERATORS;
    port.static_bytes = (uint32_t)(&_end - &__data_start);
    port.code_bytes = (uint32_t)(&__etext - &__executable_start);
    port.invalid_address = 16; // the first page is never mapped
    memories[0] = (tvit_port_memory){"arena", (uint64_t)(uintptr_t)port.arena, port.arena_bytes};
    memories[1] = (tvit_port_memory){"model", (uint64_t)(uintptr_t)port.model, port.model_bytes};
    port.memories = memories;
    port.memory_count = 2;
    native_describe(details, sizeof details, &counter);
    port.details = details;

    stack_bytes = (stack_bytes + PAGE - 1) / PAGE * PAGE;
    uint8_t *stack = map_memory(stack_bytes + PAGE);
    mprotect(stack, PAGE, PROT_NONE); // an overflow is a fault and not a wild write
    port.stack_low = stack + PAGE;
    port.stack_high = stack + PAGE + stack_bytes;

    if (!resumed) {
        if (kind == PTY && native_line_open_pty(&line)) stop(EXIT_BOARD, "cannot open a pty", strerror(errno));
        if (kind == TCP && native_line_listen(&line, (uint16_t)tcp_port))
            stop(EXIT_BOARD, "cannot listen", strerror(errno));
    }
    if (kind != TCP && fcntl(line.fd, F_GETFD) < 0) stop(EXIT_USAGE, "--fd", strerror(errno));
    line.ends_with_peer = kind == FD;
    native_line_prepare(&line);

    pthread_attr_t attributes;
    pthread_t thread;
    pthread_attr_init(&attributes);
    if (pthread_attr_setstack(&attributes, port.stack_low, stack_bytes) ||
        pthread_create(&thread, &attributes, serve, NULL))
        stop(EXIT_BOARD, "cannot start the server's thread", NULL);
    pthread_join(thread, NULL);
    return 0;
}
