/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Any protobuf message. */
#include <protobuf-c/protobuf-c.h>

/* A deep copy (free with protobuf_c_message_free_unpacked), NULL on no memory. */
ProtobufCMessage *message_copy(const ProtobufCMessage *m);
