/* SPDX-License-Identifier: Apache-2.0 */
/* What other processes of a node write: packets on the local socket, replica segments, flight recorders. The first byte chooses. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "fuzz.h"
#include "proto/flight.h"
#include "proto/fp8ctl.pb-c.h"
#include "proto/ipc.h"
#include "proto/replica.h"

/* version 1, a StartRanks with a job file and two ranks; version 1, a relayed RankReady. */
static const char start_seed[] = "p\x08\x01\x1a\x1e\x08\x05\x10\x01\x1a\x02{}\x22\x01n\x28\xe8\x07\x30\xe8\x07\x3a\x04\x08\x01\x10\x01\x3a\x04\x08\x02\x10\x02";
static const char relay_seed[] = "p\x08\x01\x2a\x0c\x1a\x0a\x08\x01\x10\x02\x18\x03\x2a\x02xy";
/* A replica header: magic, version, size 8192, slots of 64 bytes; then slot 0 as if valid. */
static const char replica_seed[] = "rR8PF\x01\0\0\0\0\x20\0\0\0\0\0\0\x40\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0";
static const char flight_seed[] = "fF8PF\x01\0\0\0\x40\x29\0\0\0\0\0\0";

const struct fuzz_seed fuzz_seeds[] = { { start_seed, sizeof(start_seed) - 1 },
                                        { relay_seed, sizeof(relay_seed) - 1 },
                                        { replica_seed, sizeof(replica_seed) - 1 },
                                        { flight_seed, sizeof(flight_seed) - 1 } };
const size_t fuzz_seeds_n = ARRAY_SIZE(fuzz_seeds);

static void packet(const uint8_t *data, size_t size) {
        static const ProtobufCMessageDescriptor *const types[] = { &fp8ctl__v1__agent_to_spawner__descriptor, &fp8ctl__v1__spawner_to_agent__descriptor,
                                                                   &fp8ctl__v1__rank_to_node__descriptor, &fp8ctl__v1__node_to_rank__descriptor };
        int fds[2];

        if (size > 60000 || ipc_pair(fds, NULL) < 0)
                return;
        for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
                ProtobufCMessage *m = NULL;

                if (send(fds[0], data, size, 0) != (ssize_t)size)
                        abort();
                if (ipc_recv(fds[1], types[i], &m, NULL, NULL) != 1)
                        continue;
                if (ipc_send(fds[0], m, NULL, 0, NULL) < 0) /* what was taken can be sent on */
                        abort();
                protobuf_c_message_free_unpacked(m, NULL);
                m = NULL;
                /* Not always equal: protobuf-c 1.4 packs some unknown fields that it took in a form that it then refuses. */
                if (ipc_recv(fds[1], types[i], &m, NULL, NULL) == 1)
                        protobuf_c_message_free_unpacked(m, NULL);
        }
        close(fds[0]);
        close(fds[1]);
}

static void replica(int fd) {
        const struct replica_slot *slot;
        uint64_t steps[REPLICA_SLOTS];
        const void *payload;
        struct replica *r;
        void *room;

        if (replica_map(fd, &r, NULL) < 0)
                return;
        for (int i = replica_steps(r, steps); i > 0; i--)
                (void)replica_find(r, steps[i - 1], 1, &slot, &payload, NULL);
        if (replica_begin(r, 6, &room, NULL) == 0)
                memset(room, 1, replica_header(r)->slot_bytes);
        replica_unmap(r);
}

static void recorder(int fd) {
        struct flight_record record;
        struct flight *f;

        if (flight_map(fd, &f, NULL) < 0)
                return;
        for (uint64_t seq = f->head - 300; seq != f->head + 2; seq++)
                (void)flight_read(f, seq, &record);
        (void)flight_phase_name(f->phase);
        flight_unmap(f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        _cleanup_close_ int fd = -1;

        if (size < 2)
                return 0;
        if (data[0] == 'p') {
                packet(data + 1, size - 1);
                return 0;
        }
        fd = memfd_create("fuzz", MFD_CLOEXEC);
        /* the header as given, and room behind it as a maker would have */
        if (fd < 0 || write(fd, data + 1, size - 1) != (ssize_t)(size - 1) || (size < 16384 && ftruncate(fd, 16384) < 0))
                abort();
        if (data[0] == 'r')
                replica(fd);
        else
                recorder(fd);
        return 0;
}
