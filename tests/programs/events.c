/* libevent: events that are added before their sockets connect. Arguments: IPv4 address, port, closed port, count. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <event2/event.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int echoed, refused, left;

struct client {
    struct event *event;
    int connected;
};

static void done(int fd, struct client *client)
{
    event_free(client->event);
    close(fd);
    left--;
}

static void ready(int fd, short what, void *argument)
{
    struct client *client = argument;
    char got[8];
    if (what & EV_TIMEOUT)
        return done(fd, client);
    if (what & EV_WRITE && !client->connected) {
        int error;
        socklen_t length = sizeof error;
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
        if (error) {
            refused += error == ECONNREFUSED;
            return done(fd, client);
        }
        /* Not yet connected is writable too: an unconnected socket hangs up. */
        if (send(fd, "ping", 4, MSG_NOSIGNAL) != 4)
            return;
        client->connected = 1;
        struct event_base *base = event_get_base(client->event);
        struct timeval patience = {20, 0};
        event_del(client->event);
        event_assign(client->event, base, fd, EV_READ | EV_PERSIST, ready, client);
        event_add(client->event, &patience);
    } else if (what & EV_READ) {
        echoed += read(fd, got, sizeof got) == 4 && memcmp(got, "ping", 4) == 0;
        done(fd, client);
    }
}

int main(int argc, char **argv)
{
    int count = left = argc > 4 ? atoi(argv[4]) : 0;
    struct event_base *base = event_base_new();
    left++;
    for (int i = 0; i <= count; i++) {
        struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[i < count ? 2 : 3]))};
        inet_pton(AF_INET, argv[1], &to.sin_addr);
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        struct client *client = calloc(1, sizeof *client);
        struct timeval patience = {20, 0};
        client->event = event_new(base, fd, EV_WRITE | EV_PERSIST, ready, client);
        event_add(client->event, &patience);
        if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0 && errno != EINPROGRESS)
            perror("connect");
    }
    while (left > 0)
        event_base_loop(base, EVLOOP_ONCE);
    printf("%s: %d echoed, %d refused\n", event_base_get_method(base), echoed, refused);
}
