// SPDX-License-Identifier: Apache-2.0
#include "native.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

int native_line_open_pty(native_line *line) {
    line->fd = posix_openpt(O_RDWR | O_NOCTTY);
    if (line->fd < 0 || grantpt(line->fd) || unlockpt(line->fd)) return -1;
    const char *path = ptsname(line->fd);
    // Our own descriptor of the other end keeps the pty alive, and its settings raw, while no host has it open.
    const int other = open(path, O_RDWR | O_NOCTTY);
    struct termios settings;
    if (other < 0 || tcgetattr(other, &settings)) return -1;
    cfmakeraw(&settings);
    if (tcsetattr(other, TCSANOW, &settings)) return -1;
    printf("%s\n", path);
    fflush(stdout);
    return 0;
}

int native_line_listen(native_line *line, uint16_t tcp_port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(tcp_port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address;
    const int yes = 1;
    line->listener = socket(AF_INET, SOCK_STREAM, 0);
    if (line->listener < 0 || setsockopt(line->listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) ||
        bind(line->listener, (struct sockaddr *)&address, length) || listen(line->listener, 1) ||
        getsockname(line->listener, (struct sockaddr *)&address, &length))
        return -1;
    printf("127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return 0;
}

void native_line_prepare(native_line *line) {
    if (line->fd >= 0) fcntl(line->fd, F_SETFL, fcntl(line->fd, F_GETFL) | O_NONBLOCK);
}

static void accept_host(native_line *line) {
    const int yes = 1;
    const int fd = accept(line->listener, NULL, NULL);
    if (fd < 0) return;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    line->fd = fd;
    native_line_prepare(line);
}

static void hang_up(native_line *line) {
    if (line->ends_with_peer) _exit(0);
    if (line->listener < 0) return; // a pty: its host will be back
    close(line->fd);
    line->fd = -1;
}

static void wait_for(native_line *line, short events, int milliseconds) {
    struct pollfd one = {.fd = line->fd, .events = events};
    if (line->fd < 0) {
        one.fd = line->listener;
        one.events = POLLIN;
    }
    if (poll(&one, 1, milliseconds) > 0 && line->fd < 0) accept_host(line);
}

void native_line_wait(native_line *line) {
    wait_for(line, POLLIN, -1);
}

size_t native_line_read(native_line *line, uint8_t *bytes, size_t capacity) {
    if (line->after_fault) wait_for(line, POLLIN, 100);
    if (line->fd < 0) return 0;
    const ssize_t got = read(line->fd, bytes, capacity);
    if (got > 0) return (size_t)got;
    if (got == 0 || (errno != EAGAIN && errno != EINTR)) hang_up(line);
    return 0;
}

void native_line_write(native_line *line, const uint8_t *bytes, size_t count) {
    while (count && line->fd >= 0) { // without a host the bytes are gone, as on any other line
        const ssize_t put = write(line->fd, bytes, count);
        if (put > 0) {
            bytes += put;
            count -= (size_t)put;
        } else if (errno == EAGAIN || errno == EINTR) {
            wait_for(line, POLLOUT, -1);
        } else {
            hang_up(line);
            return;
        }
    }
}
