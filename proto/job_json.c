/* SPDX-License-Identifier: Apache-2.0 */
/* Canonical JSON of a job: every key in the table's order, so that equal jobs are equal texts. */
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "proto/job_schema.h"
#include "proto/job_spec.h"

static json_t *layers_json(const struct job_spec *s) {
        json_t *list;

        if (s->train.recompute_all)
                return json_string("all");
        if (s->train.n_recompute_layers == 0)
                return json_string("none");
        list = json_array();
        for (int i = 0; i < s->train.n_recompute_layers; i++)
                json_array_append_new(list, json_integer(s->train.recompute_layers[i]));
        return list;
}

static json_t *groups_json(const struct job_spec *s) {
        json_t *list = json_array();

        for (int i = 0; i < s->optimizer.n_groups; i++) {
                const struct job_param_group *g = &s->optimizer.groups[i];
                json_t *o = json_pack("{s:s, s:f}", "match", g->match, "lr_scale", g->lr_scale);

                if (!isnan(g->weight_decay))
                        json_object_set_new(o, "weight_decay", json_real(g->weight_decay));
                json_array_append_new(list, o);
        }
        return list;
}

/* NULL: a text that is not set, or no memory. */
static json_t *value_json(const struct job_key *k, const struct job_spec *s) {
        const void *p = (const char *)s + k->offset;

        switch (k->type) {
        case KEY_INT:
                return json_integer(*(const int *)p);
        case KEY_I64:
                return json_integer(*(const int64_t *)p);
        case KEY_F64:
                return json_real(*(const double *)p);
        case KEY_BOOL:
                return json_boolean(*(const bool *)p);
        case KEY_STRING:
        case KEY_PATH:
                return *(char *const *)p ? json_string(*(char *const *)p) : NULL;
        case KEY_CHOICE:
                return json_string(k->choices[*(const unsigned *)p]);
        case KEY_LAYERS:
                return layers_json(s);
        case KEY_GROUPS:
                return groups_json(s);
        }
        return NULL;
}

static bool is_unset(const struct job_key *k, const struct job_spec *s) {
        return (k->type == KEY_STRING || k->type == KEY_PATH) && !*(char *const *)((const char *)s + k->offset);
}

/* The fewest digits, at most 17, that every number of the job survives: 0.1 stays 0.1. */
static int digits_needed(const struct job_spec *s) {
        int digits = 6;
        char text[40];

        for (size_t i = 0; i < job_keys_n; i++)
                for (; job_keys[i].type == KEY_F64 && digits < 17; digits++) {
                        const void *at = (const char *)s + job_keys[i].offset;
                        double v = *(const double *)at;

                        snprintf(text, sizeof(text), "%.*g", digits, v);
                        if (strtod(text, NULL) == v)
                                break;
                }
        for (int i = 0; i < s->optimizer.n_groups; i++)
                for (; digits < 17; digits++) {
                        const struct job_param_group *g = &s->optimizer.groups[i];
                        char decay[40];

                        snprintf(text, sizeof(text), "%.*g", digits, g->lr_scale);
                        snprintf(decay, sizeof(decay), "%.*g", digits, g->weight_decay);
                        if (strtod(text, NULL) == g->lr_scale && (isnan(g->weight_decay) || strtod(decay, NULL) == g->weight_decay))
                                break;
                }
        return digits;
}

static int add_key(json_t *root, const struct job_key *k, const struct job_spec *s) {
        const char *dot = strchr(k->path, '.');
        _cleanup_free_ char *section = dot ? strndup(k->path, (size_t)(dot - k->path)) : NULL;
        json_t *value, *parent = root;

        if (is_unset(k, s) || strcmp(k->path, "model.config") == 0) /* inlined */
                return 0;
        if (dot) {
                if (!section)
                        return -ENOMEM;
                parent = json_object_get(root, section);
                if (!parent) {
                        parent = json_object();
                        if (json_object_set_new(root, section, parent) < 0)
                                return -ENOMEM;
                }
        }
        value = value_json(k, s);
        if (!value) /* texts are UTF-8: the YAML parser let nothing else in */
                return -ENOMEM;
        return json_object_set_new(parent, dot ? dot + 1 : k->path, value) < 0 ? -ENOMEM : 0;
}

int job_spec_to_json(const struct job_spec *s, char **ret, struct error *e) {
        json_t *root = json_object();
        char *text = NULL;
        int r = root ? 0 : -ENOMEM;

        for (size_t i = 0; i < job_keys_n && r == 0; i++)
                r = add_key(root, &job_keys[i], s);
        if (r == 0)
                text = json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION((size_t)digits_needed(s)));
        json_decref(root);
        if (!text)
                return error_set(e, -ENOMEM, "no memory for a job's JSON");
        *ret = text;
        return 0;
}

char *job_manifest_state(const struct job_spec *s, const char *layout, const char *state) {
        json_error_t je;
        json_t *root = json_loads(state, 0, &je), *model;
        char *text = NULL, *config = NULL;

        if (!root)
                return NULL;
        json_object_set_new(root, "recipe", json_string(job_recipe_name(s->precision.recipe)));
        json_object_set_new(root, "layout", json_string(layout));
        json_object_set_new(root, "data_path", json_string(s->data.path));
        if (model_config_to_json(&s->model, &config, NULL) == 0) {
                model = json_loads(config, 0, &je);
                if (model)
                        json_object_set_new(root, "model", model);
                free(config);
        }
        text = json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(17));
        json_decref(root);
        return text;
}
