/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/message.h"

#include <stdint.h>

#include "base/cleanup.h"

ProtobufCMessage *message_copy(const ProtobufCMessage *m) {
        size_t len = protobuf_c_message_get_packed_size(m);
        _cleanup_free_ uint8_t *buf = malloc(len ? len : 1);

        if (!buf)
                return NULL;
        protobuf_c_message_pack(m, buf);
        return protobuf_c_message_unpack(m->descriptor, NULL, len, buf);
}
