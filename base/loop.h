/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Event loop over epoll.  All calls but loop_post and loop_stop belong to the thread that runs the loop.
 * Handlers may add and remove sources, their own included.  A handler never blocks.
 */
#include <stdint.h>

struct loop;
struct loop_source;

int loop_new(struct loop **ret);
/* Frees the loop and every source still in it (not the fds it was given); NULL is allowed; returns NULL. */
struct loop *loop_free(struct loop *l);

/* events/revents: EPOLLIN, EPOLLOUT, ... (level-triggered). The fd stays the caller's. ret may be NULL. */
int loop_add_fd(struct loop *l, int fd, uint32_t events, void (*fn)(void *arg, uint32_t revents), void *arg,
                struct loop_source **ret);
int loop_fd_set_events(struct loop_source *s, uint32_t events);
/* A one-shot timer on CLOCK_MONOTONIC; deadline_ns 0 leaves it off. It may be set again from its handler. */
int loop_add_timer(struct loop *l, uint64_t deadline_ns, void (*fn)(void *arg), void *arg, struct loop_source **ret);
void loop_timer_set(struct loop_source *s, uint64_t deadline_ns);
/* The signal must be blocked in every thread of the process (do so before gRPC starts). */
int loop_add_signal(struct loop *l, int signo, void (*fn)(void *arg, int signo), void *arg, struct loop_source **ret);
/* NULL is allowed; returns NULL; the handler is not called again, not even for an event already read. */
struct loop_source *loop_remove(struct loop_source *s);

/* From any thread: fn(arg) runs soon in the loop's thread, in posting order. -ENOMEM. */
int loop_post(struct loop *l, void (*fn)(void *arg), void *arg);
/* Runs until loop_stop; returns the code given there or a negative errno of epoll. */
int loop_run(struct loop *l);
/* Handles what is ready, waiting at most timeout_ms (-1: without limit). Returns 0 or a negative errno. */
int loop_turn(struct loop *l, int timeout_ms);
/* From any thread. */
void loop_stop(struct loop *l, int code);
