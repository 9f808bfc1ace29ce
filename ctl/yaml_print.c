/* SPDX-License-Identifier: Apache-2.0 */
/* JSON values as YAML, by libyaml's emitter: it knows when a string must be quoted, but not that "12" or "null" would be read as something else. */
#include <inttypes.h>
#include <string.h>
#include <yaml.h>

#include "ctl/print.h"

static int emit_scalar(yaml_emitter_t *y, const char *text, yaml_scalar_style_t style) {
        yaml_event_t ev;

        return yaml_scalar_event_initialize(&ev, NULL, NULL, (yaml_char_t *)text, (int)strlen(text), 1, 1, style) && yaml_emitter_emit(y, &ev);
}

/* Would a YAML reader take this plain scalar for something else than a string? Anything that does not begin with a letter or a slash is quoted. */
static yaml_scalar_style_t string_style(const char *s) {
        static const char *const words[] = { "null", "Null", "NULL", "true", "True", "TRUE", "false", "False", "FALSE", "yes", "Yes", "YES", "no", "No", "NO",
                                             "on", "On", "ON", "off", "Off", "OFF", "y", "n", "Y", "N" };
        char c = s[0];

        for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
                if (strcmp(s, words[i]) == 0)
                        return YAML_DOUBLE_QUOTED_SCALAR_STYLE;
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '/' ? YAML_ANY_SCALAR_STYLE : YAML_DOUBLE_QUOTED_SCALAR_STYLE;
}

static int emit(yaml_emitter_t *y, const json_t *v);

static int emit_object(yaml_emitter_t *y, const json_t *v) {
        yaml_event_t ev;
        const char *key;
        json_t *value;

        if (!yaml_mapping_start_event_initialize(&ev, NULL, NULL, 1, json_object_size(v) ? YAML_BLOCK_MAPPING_STYLE : YAML_FLOW_MAPPING_STYLE) ||
            !yaml_emitter_emit(y, &ev))
                return 0;
        json_object_foreach((json_t *)v, key, value)
                if (!emit_scalar(y, key, YAML_ANY_SCALAR_STYLE) || !emit(y, value))
                        return 0;
        return yaml_mapping_end_event_initialize(&ev) && yaml_emitter_emit(y, &ev);
}

static int emit_array(yaml_emitter_t *y, const json_t *v) {
        yaml_event_t ev;
        size_t i;
        json_t *value;

        if (!yaml_sequence_start_event_initialize(&ev, NULL, NULL, 1, json_array_size(v) ? YAML_BLOCK_SEQUENCE_STYLE : YAML_FLOW_SEQUENCE_STYLE) ||
            !yaml_emitter_emit(y, &ev))
                return 0;
        json_array_foreach((json_t *)v, i, value)
                if (!emit(y, value))
                        return 0;
        return yaml_sequence_end_event_initialize(&ev) && yaml_emitter_emit(y, &ev);
}

static int emit(yaml_emitter_t *y, const json_t *v) {
        char buf[64];

        switch (json_typeof(v)) {
        case JSON_OBJECT:
                return emit_object(y, v);
        case JSON_ARRAY:
                return emit_array(y, v);
        case JSON_STRING:
                return emit_scalar(y, json_string_value(v), string_style(json_string_value(v)));
        case JSON_INTEGER:
                snprintf(buf, sizeof(buf), "%" JSON_INTEGER_FORMAT, json_integer_value(v));
                return emit_scalar(y, buf, YAML_PLAIN_SCALAR_STYLE);
        case JSON_REAL:
                snprintf(buf, sizeof(buf) - 2, "%.17g", json_real_value(v));
                if (!strpbrk(buf, ".eE"))
                        memcpy(buf + strlen(buf), ".0", 3);
                return emit_scalar(y, buf, YAML_PLAIN_SCALAR_STYLE);
        case JSON_TRUE:
                return emit_scalar(y, "true", YAML_PLAIN_SCALAR_STYLE);
        case JSON_FALSE:
                return emit_scalar(y, "false", YAML_PLAIN_SCALAR_STYLE);
        case JSON_NULL:
                return emit_scalar(y, "null", YAML_PLAIN_SCALAR_STYLE);
        }
        return 0;
}

void print_yaml(FILE *f, const json_t *o) {
        yaml_emitter_t y;
        yaml_event_t ev;

        if (!yaml_emitter_initialize(&y))
                return;
        yaml_emitter_set_output_file(&y, f);
        yaml_emitter_set_unicode(&y, 1);
        yaml_emitter_set_width(&y, -1);
        if (yaml_stream_start_event_initialize(&ev, YAML_UTF8_ENCODING) && yaml_emitter_emit(&y, &ev) &&
            yaml_document_start_event_initialize(&ev, NULL, NULL, NULL, 1) && yaml_emitter_emit(&y, &ev) && emit(&y, o) &&
            yaml_document_end_event_initialize(&ev, 1) && yaml_emitter_emit(&y, &ev) && yaml_stream_end_event_initialize(&ev))
                yaml_emitter_emit(&y, &ev);
        yaml_emitter_delete(&y);
}
