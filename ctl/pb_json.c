/* SPDX-License-Identifier: Apache-2.0 */
/* Messages as JSON through their descriptors: a field that fp8ctl.proto gains appears under its own name without a line here. */
#include <math.h>
#include <string.h>

#include "ctl/print.h"

static json_t *from_enum(const ProtobufCFieldDescriptor *f, int value) {
        const ProtobufCEnumValue *v = protobuf_c_enum_descriptor_get_value(f->descriptor, value);

        return v ? json_string(v->name) : json_integer(value);
}

static json_t *from_double(double v) {
        return isfinite(v) ? json_real(v) : json_null();
}

static json_t *from_uint64(const ProtobufCFieldDescriptor *f, uint64_t v) {
        size_t len = strlen(f->name);

        if (v == 0 && len > 8 && strcmp(f->name + len - 8, "_unix_ms") == 0)
                return json_null();
        /* A number that no 64-bit signed integer holds comes from no honest peer. */
        return v > INT64_MAX ? json_null() : json_integer((json_int_t)v);
}

static json_t *from_bytes(const ProtobufCBinaryData *b) {
        static const char digits[] = "0123456789abcdef";
        char hex[2 * 64 + 1];
        size_t n = b->len < 64 ? b->len : 64;

        for (size_t i = 0; i < n; i++) {
                hex[2 * i] = digits[b->data[i] >> 4];
                hex[2 * i + 1] = digits[b->data[i] & 15];
        }
        hex[2 * n] = 0;
        return json_string(hex);
}

static json_t *from_string(const char *s) {
        json_t *v;

        if (!s || !*s)
                return json_null();
        v = json_string(s);
        return v ? v : json_string("(not UTF-8)"); /* jansson refuses it; protobuf-c does not check */
}

/* p: where the value lies. */
static json_t *from_value(const ProtobufCFieldDescriptor *f, const void *p) {
        switch (f->type) {
        case PROTOBUF_C_TYPE_INT32:
        case PROTOBUF_C_TYPE_SINT32:
        case PROTOBUF_C_TYPE_SFIXED32:
                return json_integer(*(const int32_t *)p);
        case PROTOBUF_C_TYPE_UINT32:
        case PROTOBUF_C_TYPE_FIXED32:
                return json_integer(*(const uint32_t *)p);
        case PROTOBUF_C_TYPE_INT64:
        case PROTOBUF_C_TYPE_SINT64:
        case PROTOBUF_C_TYPE_SFIXED64:
                return json_integer(*(const int64_t *)p);
        case PROTOBUF_C_TYPE_UINT64:
        case PROTOBUF_C_TYPE_FIXED64:
                return from_uint64(f, *(const uint64_t *)p);
        case PROTOBUF_C_TYPE_FLOAT:
                return from_double((double)*(const float *)p);
        case PROTOBUF_C_TYPE_DOUBLE:
                return from_double(*(const double *)p);
        case PROTOBUF_C_TYPE_BOOL:
                return json_boolean(*(const protobuf_c_boolean *)p);
        case PROTOBUF_C_TYPE_ENUM:
                return from_enum(f, *(const int *)p);
        case PROTOBUF_C_TYPE_STRING:
                return from_string(*(char *const *)p);
        case PROTOBUF_C_TYPE_BYTES:
                return from_bytes(p);
        case PROTOBUF_C_TYPE_MESSAGE: {
                const ProtobufCMessage *m = *(ProtobufCMessage *const *)p;

                return m ? pb_to_json(m) : json_null();
        }
        }
        return json_null();
}

static size_t value_size(ProtobufCType t) {
        switch (t) {
        case PROTOBUF_C_TYPE_INT64:
        case PROTOBUF_C_TYPE_SINT64:
        case PROTOBUF_C_TYPE_SFIXED64:
        case PROTOBUF_C_TYPE_UINT64:
        case PROTOBUF_C_TYPE_FIXED64:
        case PROTOBUF_C_TYPE_DOUBLE:
                return 8;
        case PROTOBUF_C_TYPE_BOOL:
                return sizeof(protobuf_c_boolean);
        case PROTOBUF_C_TYPE_STRING:
        case PROTOBUF_C_TYPE_MESSAGE:
                return sizeof(void *);
        case PROTOBUF_C_TYPE_BYTES:
                return sizeof(ProtobufCBinaryData);
        default:
                return 4;
        }
}

static json_t *from_field(const ProtobufCMessage *m, const ProtobufCFieldDescriptor *f) {
        const char *base = (const char *)m;
        json_t *array;

        if (f->label != PROTOBUF_C_LABEL_REPEATED)
                return from_value(f, base + f->offset);
        array = json_array();
        for (size_t i = 0; i < *(const size_t *)(base + f->quantifier_offset); i++)
                json_array_append_new(array, from_value(f, *(const char *const *)(base + f->offset) + i * value_size(f->type)));
        return array;
}

static void add_fields(json_t *o, const ProtobufCMessage *m) {
        for (unsigned i = 0; i < m->descriptor->n_fields; i++) {
                const ProtobufCFieldDescriptor *f = &m->descriptor->fields[i];
                const uint32_t *which = (const uint32_t *)((const char *)m + f->quantifier_offset);

                if (f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF && *which != f->id)
                        continue;
                json_object_set_new(o, f->name, from_field(m, f));
        }
}

json_t *pb_to_json(const ProtobufCMessage *m) {
        json_t *o = json_object();

        if (o)
                add_fields(o, m);
        return o;
}

json_t *pb_to_json_v(const ProtobufCMessage *m) {
        json_t *o = json_object();

        if (o) {
                json_object_set_new(o, "v", json_integer(CTL_JSON_VERSION));
                add_fields(o, m);
        }
        return o;
}
